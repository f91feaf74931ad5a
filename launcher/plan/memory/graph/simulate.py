"""The size of a compute buffer, by building the graph and playing ggml's allocator. Pure.

Layers repeat. The graph is built for a shorter walk through their kinds, in which every two neighbours occur once; the
allocator then goes through all layers with the stretches found there, and remembers what each did to which heap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from launcher.ir.config import ArchitectureConfig
from launcher.plan.memory.graph.allocator import Player, Segment, aligned, lifetimes
from launcher.plan.memory.graph.batch import Batch, Build, NotSimulatedError, Weights
from launcher.plan.memory.graph.models import KNOWN, MIXERS, SIMULATED, embed, finish, layer
from launcher.plan.memory.layers import at, slides

END = -1
"""The number of what comes after the last layer, and before the first."""


class Sizes(NamedTuple):
    """Bytes of the host's buffer, and of the device's where every layer is on one."""

    host: int
    device: int = 0


def compute_bytes(arch: ArchitectureConfig, batch: Batch, kinds: Sequence[Weights], order: Sequence[int]) -> Sizes:
    """What the graph for one batch needs.

    `order` has the index in `kinds` of each layer's weights. Raises NotSimulatedError for a graph that is not
    described in `models`.
    """
    why = undescribed(arch, kinds)
    if why or not order:
        raise NotSimulatedError(why)
    numbers = number(arch, kinds, order, apart=1 if batch.offloaded else 0)
    kept = walk(numbers)
    try:
        build, bounds = _build(arch, batch, kinds, order, kept)
    except (IndexError, ValueError, ZeroDivisionError):
        raise NotSimulatedError("the shapes of the weights do not fit together") from None
    segments = lifetimes(build.graph.nodes, build.graph.inputs, bounds)
    peak = _play(numbers, [*(numbers[il] for il in kept), END], segments, Player(build.graph.inputs))
    return Sizes(_feeding(arch, build), peak) if batch.offloaded else Sizes(peak)


def _build(
    arch: ArchitectureConfig, batch: Batch, kinds: Sequence[Weights], order: Sequence[int], kept: Sequence[int]
) -> tuple[Build, list[int]]:
    """The graph of the layers `kept`, and how many nodes there are after each and at the end."""
    build = Build(arch, batch)
    x = embed(build)
    bounds = []
    for il in kept:
        x = layer(build, kinds[order[il]], il, x, last=il == len(order) - 1)
        bounds.append(len(build.graph.nodes))
    finish(build, x)
    bounds.append(len(build.graph.nodes))
    if min(value.size for value in (*build.graph.nodes, *build.graph.inputs)) < 0:
        raise ValueError
    return build, bounds


def undescribed(arch: ArchitectureConfig, kinds: Sequence[Weights]) -> str:
    """Why the graph of a model cannot be built; "" when it can."""
    if arch.arch not in SIMULATED:
        return f"the graph of {arch.arch} is not known"
    unknown = sorted({name for kind in kinds for name in kind} - KNOWN)
    if "ffn_latent_down.weight" in {name for kind in kinds for name in kind}:
        return "experts in a latent space are not known"
    return f"the use of {', '.join(unknown)} is not known" if unknown else ""


def _feeding(arch: ArchitectureConfig, build: Build) -> int:
    """Bytes of a host that only feeds a device: tokens, embeddings given and looked up, and all other inputs."""
    tokens = build.batch.tokens
    given = arch.n_embd * (1 + arch.n_deepstack)
    return aligned(tokens * 4) + aligned(given * tokens * 4) + sum(aligned(value.size) for value in build.graph.inputs)


def number(arch: ArchitectureConfig, kinds: Sequence[Weights], order: Sequence[int], *, apart: int = 0) -> list[int]:
    """Layers by kind: equal weights, heads and window; the last of a kind, which may free inputs, is one of its own.

    So are the first `apart`: what they add to may be an input. A layer that only feeds forward is evaluated with the
    one after it: what came before it is part of its kind.
    """
    deep = range(max(arch.n_deepstack, apart))
    traits = [
        (k, slides(arch, il), at(arch.n_head, il), at(arch.n_head_kv, il), il if il in deep else END)
        for il, k in enumerate(order)
    ]
    last = {trait: il for il, trait in enumerate(traits)}
    known: dict[object, int] = {}
    found = [END]
    for il, trait in enumerate(traits):
        before = None if MIXERS.intersection(kinds[order[il]]) else found[-1]
        found.append(known.setdefault((trait, last[trait] == il, before), len(known)))
    return found[1:]


def walk(numbers: Sequence[int]) -> list[int]:
    """Indices of layers to build: the same neighbours as in `numbers`, each pair at least once, detours left out."""
    kept, seen, here = [0], set[tuple[int, int]](), 0
    while here < len(numbers) - 1:
        ahead = here
        for i in range(here, len(numbers) - 1):
            if numbers[i] == numbers[here]:
                ahead = i
            if (numbers[i], numbers[i + 1]) not in seen:
                break
        here = ahead + 1
        seen.add((numbers[ahead], numbers[here]))
        kept.append(here)
    return kept


def _play(numbers: Sequence[int], built: Sequence[int], segments: Sequence[Segment], player: Player) -> int:
    """The peak of all layers, with the stretches that were found between neighbours of the same kinds."""
    found: dict[tuple[int, int], int] = {}
    for i, (before, after) in enumerate(zip([END, *built], built, strict=False)):
        found.setdefault((before, after) if i else (END, END - 1), i)
    path = [(END, END - 1), *zip(numbers, [*numbers[1:], END], strict=True)]
    for pair in path:
        player.play(found[pair], segments[found[pair]])
    return player.peak
