"""Odd but legal servers of every architecture, drawn: devices, splits, rules, drafts and flags together."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from launcher.catalog.declared import synthesise
from launcher.catalog.mix import MIXES
from launcher.ir.architectures import complete
from launcher.ir.catalog import Catalog, FilePart, ModelFile
from launcher.ir.config import ArchitectureConfig, DraftConfig, EngineConfig, FleetConfig, NgramConfig, ServerConfig
from launcher.plan import plan_fleet
from launcher.plan.proof import is_mismatch
from launcher.proving import prove_fleet
from launcher.sizes import GIB, MIB
from tests.plan import drawn, fleets

DRAFTS = ("llama", "qwen3", "gemma3", "qwen3moe", "granitehybrid", "lfm2", "qwen35")
CARDS = {"cuda0": 24 * GIB, "cuda1": 8 * GIB}
DEVICES = ((), ("cuda0",), ("cuda1",), ("cuda0", "cuda1"), ("cuda0", "cuda1"), ("cuda1", "cuda0"))
TOO_MANY_EXPERTS = ("GGML_ASSERT(obj_new) failed", "ggml-impl.h:318: fatal error")
"""A graph that llama.cpp itself sized too small for so many experts a token: its own limit, and the proof says so."""


def file_of(arch: ArchitectureConfig, name: str) -> ModelFile:
    """A declared model: the proof makes a sparse file of it."""
    tensors, findings = synthesise(arch, MIXES["Q4_K_M"])
    assert tensors, findings
    return ModelFile(
        model=name,
        quantization="q8_0",
        source="declared",
        architecture=complete(arch),
        tensors=tensors,
        parts=(FilePart(path=f"/models/{name}.gguf", size_bytes=sum(t.size_bytes for t in tensors)),),
        header_digest=f"{name}-{arch!r}",
    )


def _rules(rng: random.Random, devices: tuple[str, ...]) -> tuple[str, ...]:
    """One or two rules about tensors, sensible and not."""
    first, last = devices[0], devices[-1]
    rules = ["ffn=cpu", "attn=cpu", "exps=cpu", "output=cpu", "norm=cpu", r"blk\.[01]\.=cpu", f"ffn_down={last}"]
    rules += [rf"blk\.(0|2)\..*={first}", f"token_embd={first}", f"output={last}"]
    return tuple(rng.choice(rules) for _ in range(rng.choice([1, 2])))


def _on_cards(rng: random.Random, arch: ArchitectureConfig, devices: tuple[str, ...]) -> dict[str, Any]:
    """Where layers, K/V and single tensors go."""
    fields: dict[str, Any] = {
        "devices": devices,
        "n_gpu_layers": rng.choice(["all", "all", "all", rng.randrange(0, arch.n_layer + 3)]),
        "kv_offload": rng.random() > 0.15,
    }
    if len(devices) > 1:
        fields |= {"split_mode": rng.choice(["layer", "layer", "none"]), "main_gpu": rng.choice([None, *devices])}
        fields["tensor_split"] = rng.choice([(), (), (1, 1), (3, 1), (0, 1), (1, 0), (0.3, 7)])
    if rng.random() < 0.25:
        fields["tensor_placement"] = _rules(rng, devices)
    return fields


def _speculation(rng: random.Random, arch: ArchitectureConfig, draft: str, devices: tuple[str, ...]) -> dict[str, Any]:
    """A draft by the model's own layers, by another model on any device, or n-grams."""
    chance, kind = rng.random(), rng.choice(["f16", "f16", "bf16"])
    if arch.n_layer_nextn and chance < 0.6:
        return {"draft": DraftConfig(kind="mtp", n_max=rng.choice([1, 2, 4, 8]), cache_type_k=kind)}
    if chance < 0.2:
        own = rng.choice([None, None, (), ("cuda0",), ("cuda1",)]) if devices else None
        layers, most = rng.choice(["all", 0, 1, 2]), rng.choice([4, 16])
        other = DraftConfig(model=draft, quantization="q8_0", n_max=most, devices=own, n_gpu_layers=layers)
        return {"draft": other}
    if chance < 0.35:
        return {"ngram": NgramConfig(kind=rng.choice(["simple", "map-k", "map-k4v", "mod", "cache"]))}
    return {}


def server(rng: random.Random, arch: ArchitectureConfig, draft: str, build: int) -> ServerConfig:
    """A server of such a model."""
    plain = drawn.config(rng, arch)
    fields: dict[str, Any] = {"load_mode": rng.choice(["mmap", "none", "mlock", "mmap+mlock"])}
    fields["repack"] = rng.random() < 0.3 and arch.kv_lora_rank == 0  # this build aborts on latent attention with AMX
    devices = rng.choice(DEVICES)
    fields |= _on_cards(rng, arch, devices) if devices else {}
    if arch.n_expert and rng.random() < 0.4:
        fields["n_cpu_moe"] = rng.randrange(0, arch.n_layer + 4)
    if arch.n_expert and rng.random() < 0.3:
        fields["experts_used"] = rng.randrange(1, arch.n_expert + 1)
    if build >= 10930 and rng.random() < 0.2:
        fields["n_cpu_ffn"] = rng.randrange(1, arch.n_layer + 4)
    if arch.causal and not plain.embedding:
        fields |= _speculation(rng, arch, draft, devices) | {"context_shift": rng.random() < 0.1}
    elif not arch.causal and rng.random() < 0.3:
        fields["pooling"] = rng.choice(["mean", "cls", "last", "rank"])
    if rng.random() < 0.1:
        fields |= {"n_ctx": None, "n_ctx_per_slot": rng.randrange(256, 9000)}
    return msgspec.structs.replace(plain, **fields)


def draw(seeds: range, build: int) -> tuple[dict[str, ServerConfig], Catalog]:
    """A server a seed, the architectures take turns; each has a model and a draft of its own."""
    servers, files = {}, []
    for seed in seeds:
        rng = random.Random(seed * 7919 + 13)  # noqa: S311 - the same draws again
        arch = drawn.architecture(rng, drawn.ARCHITECTURES[seed % len(drawn.ARCHITECTURES)])
        small = msgspec.structs.replace(drawn.architecture(rng, rng.choice(DRAFTS)), n_vocab=arch.n_vocab)
        files += [file_of(arch, f"m{seed}"), file_of(small, f"d{seed}")]
        servers[f"s{seed}"] = msgspec.structs.replace(server(rng, arch, f"d{seed}", build), model=f"m{seed}")
    return servers, Catalog(files={f"{file.model}@{file.quantization}": file for file in files})


def disagreements(servers: Mapping[str, ServerConfig], models: Catalog, binary: Path, build: int) -> list[str]:
    """What plan and binary say differently of the servers that the plan finds no error in."""

    def fleet(some: Mapping[str, ServerConfig]) -> FleetConfig:
        engines = {"default": EngineConfig(binary=str(binary), dialect=f"b{build}")}
        return fleets.fleet(dict(some), hardware=fleets.hardware(gpus=CARDS), engines=engines)

    planned = plan_fleet(fleet(servers), models, deployment="odd", input_digest="")
    wrong = {f.key.split(".")[1] for f in planned.findings if f.severity == "error" and f.key.startswith("servers.")}
    loose = {f.key.split(".")[1] for f in planned.findings if f.code == "plan/compute-bound"}
    proof, _ = prove_fleet(fleet({n: s for n, s in servers.items() if n not in wrong}), models, binary=str(binary))
    found = []
    for said in proof.servers:
        what = f"{said.name} {models.files[f'{servers[said.name].model}@q8_0'].architecture.arch}"
        if said.failure is not None and not any(end in said.failure for end in TOO_MANY_EXPERTS):
            found.append(f"{what} {said.failure[-200:]}")
        for d in filter(is_mismatch, said.differences):
            if d.component == "compute" and said.name in loose:
                continue  # as the plan says of it
            mine, theirs = d.predicted_bytes / MIB, d.proven_bytes / MIB
            found.append(f"{what} {d.component} on {d.device}: {mine:.2f} MiB planned, {theirs:.2f} said")
    return found
