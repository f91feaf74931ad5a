"""Choose which models run, when, and with how much context, so that all fit into memory. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec

from launcher.author.pairing import ServerCandidate
from launcher.sizes import gib

CONTEXTS = (32768, 16384, 8192, 4096, 2048)
"""Context lengths (tokens per slot) that are tried, the longest first."""
CONTEXT_TOGETHER = 8192
"""Tokens per slot: with fewer, running all models at once is worse than taking turns."""
EMBEDDING_CONTEXT = 2048
"""Tokens per slot that an embedding model gets at most: its batch must hold a whole text."""
SERVERS_MAX = 12
"""Servers in a first file at most; a person wants no more there."""
TURNS = "turns"
"""The exclusive group of servers that do not fit into memory together."""

SPILLED = ", some layers in RAM"

Needs = Callable[[ServerCandidate, int], int]
"""Bytes that a server needs with so many tokens per slot."""


class MemoryBudget(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet may use, in bytes: of the cards together, and of RAM."""

    cards: int
    ram: int

    @property
    def pool(self) -> int:
        """Where models go: the cards, where there are any."""
        return self.cards or self.ram


class ServerChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One server of the fleet, and why it is so. `exclusive`: it takes turns with the others of that group."""

    candidate: ServerCandidate
    tier: Literal["hot", "warm"]
    n_ctx_per_slot: int
    bytes: int
    why: str
    exclusive: str = ""


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The chosen servers, and the models that were left out, each with the reason."""

    servers: tuple[ServerChoice, ...]
    left_out: tuple[tuple[ServerCandidate, str], ...] = ()


class _Fit(NamedTuple):
    """A model that fits, with tokens per slot and the bytes needed. `whole`: all of it fits into `Memory.pool`."""

    candidate: ServerCandidate
    tokens: int
    size: int
    whole: bool


def choose(found: Sequence[ServerCandidate], memory: MemoryBudget, needs: Needs) -> Chosen:
    """Choose servers: all up at once if they fit, else embedders up and chat models that do not fit taking turns.

    The largest one is up first. A model that fits beside each of the others is always up, too. A model that does not
    fit at all is left out, as are those after the first `SERVERS_MAX`.
    """
    helpers = [c for c in found if c.kind != "chat"]
    talkers = sorted((c for c in found if c.kind == "chat"), key=lambda c: (-c.facts.file.file_bytes, c.name))
    surplus = [(c, f"a first file has {SERVERS_MAX} servers at most") for c in (*talkers, *helpers)[SERVERS_MAX:]]
    kept = [c for c in (*talkers, *helpers) if all(c is not other for other, _ in surplus)]
    for context in (c for c in CONTEXTS if c >= CONTEXT_TOGETHER):
        sizes = {c.name: needs(c, tokens_for(c, context)) for c in kept}
        if sum(sizes.values()) <= memory.pool:
            servers = tuple(_always(c, context, sizes[c.name]) for c in kept)
            return Chosen(servers=servers, left_out=tuple(surplus))
    return _in_turns(kept, surplus, memory, needs)


def steps(candidate: ServerCandidate, contexts: Sequence[int]) -> tuple[int, ...]:
    """The tokens per slot that a model gets for each of `contexts`, without repetitions."""
    return tuple(dict.fromkeys(tokens_for(candidate, context) for context in contexts))


def tokens_for(candidate: ServerCandidate, wanted: int) -> int:
    """Tokens per slot: `wanted`, limited by what the model was trained for, and for embedders by EMBEDDING_CONTEXT."""
    trained = candidate.facts.file.architecture.n_ctx_train or wanted
    return min(wanted, trained, EMBEDDING_CONTEXT if candidate.kind != "chat" else wanted)


def _beside_each(fitting: Sequence[_Fit], free: int) -> list[_Fit]:
    """The models that fit beside each one of the others, the smallest first: they need not take turns."""
    apart: list[_Fit] = []
    for fit in sorted((fit for fit in fitting if fit.whole), key=lambda fit: fit.size):
        others = [other for other in fitting if other is not fit and other not in apart]
        taken = sum(other.size for other in (fit, *apart))
        if others and all(other.whole and taken + other.size <= free for other in others):
            apart.append(fit)
    return apart


def _always(candidate: ServerCandidate, context: int, size: int) -> ServerChoice:
    return chosen_as(candidate, tokens_for(candidate, context), size, f"{gib(size)}, always up")


def chosen_as(  # noqa: PLR0917  # what a choice consists of
    candidate: ServerCandidate, tokens: int, size: int, why: str, tier: Literal["hot", "warm"] = "hot", group: str = ""
) -> ServerChoice:
    """A choice; `why` is completed by a description of its context."""
    why = f"{why}; {tokens_words(candidate, tokens)}"
    return ServerChoice(candidate=candidate, tier=tier, n_ctx_per_slot=tokens, bytes=size, why=why, exclusive=group)


def tokens_words(candidate: ServerCandidate, tokens: int) -> str:
    """The context length in words, with the trained one if that is longer."""
    trained = candidate.facts.file.architecture.n_ctx_train
    if tokens >= trained:
        return f"all {trained:,} tokens that it was trained for"
    if candidate.kind != "chat":
        return f"texts of {tokens:,} tokens (trained for {trained:,})"
    return f"{tokens:,} of its {trained:,} tokens a slot"


def _in_turns(
    kept: Sequence[ServerCandidate], surplus: Sequence[tuple[ServerCandidate, str]], memory: MemoryBudget, needs: Needs
) -> Chosen:
    """Choose embedders first, while they leave half of the memory; then chat models, which take turns if need be."""
    servers: list[ServerChoice] = []
    left_out = list(surplus)
    free = memory.pool
    for candidate in (c for c in kept if c.kind != "chat"):
        choice = _always(candidate, CONTEXTS[0], needs(candidate, tokens_for(candidate, CONTEXTS[0])))
        if choice.bytes > free - memory.pool // 2:
            left_out.append((candidate, f"{gib(choice.bytes)} beside the others are too much"))
            continue
        servers.append(choice)
        free -= choice.bytes
    beyond = memory.ram if memory.cards else 0  # layers that the cards do not hold stay in RAM
    fitting: list[_Fit] = []
    for candidate in (c for c in kept if c.kind == "chat"):
        sizes = {tokens: needs(candidate, tokens) for tokens in steps(candidate, CONTEXTS)}
        whole = next(((t, size) for t, size in sizes.items() if size <= free), None)
        part = next(((t, size) for t, size in sizes.items() if t <= 8192 and size <= free + beyond), None)
        if whole or part:
            fitting.append(_Fit(candidate, *(whole or part or (0, 0)), whole is not None))
        else:
            left_out.append((candidate, f"needs {gib(min(sizes.values()))}, and {gib(free + beyond)} are free for it"))
    fitting.sort(key=lambda fit: not fit.whole)  # who fits whole on the cards comes first
    apart = _beside_each(fitting, free)
    others = [fit for fit in fitting if fit not in apart]
    group = TURNS if len(others) > 1 else ""
    taking: list[ServerChoice] = []
    for fit in others:
        turn = "takes turns: they do not fit together" if taking else "up first, then takes turns"
        why = f"{gib(fit.size)}{'' if fit.whole else SPILLED}, {turn if group else 'always up'}"
        taking.append(chosen_as(fit.candidate, fit.tokens, fit.size, why, "warm" if taking else "hot", group))
    beside = [_always(fit.candidate, fit.tokens, fit.size) for fit in apart]
    return Chosen(servers=(*taking, *beside, *servers), left_out=tuple(left_out))
