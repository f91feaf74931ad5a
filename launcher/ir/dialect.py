"""The command-line options of one llama-server build. Pure."""

from __future__ import annotations

import msgspec


class Flag(msgspec.Struct, frozen=True, kw_only=True):
    """One option: every spelling, whether it takes a value, the values it lists, its environment name.

    `arity` 0 is a switch, 1 takes a value, 2 takes two. `choices` is empty when the help names none.
    `negations` are the spellings that switch it off (`--no-mmap`).
    """

    names: tuple[str, ...]
    arity: int
    choices: tuple[str, ...] = ()
    negations: tuple[str, ...] = ()
    env: str | None = None
    default: str | None = None
    deprecated: str | None = None
    removed: bool = False
    help: str = ""

    def takes(self, spelling: str) -> int:
        """How many values follow this spelling of it: none what switches it off."""
        return 0 if spelling in self.negations else self.arity


class Dialect(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """Every flag of one build. `digest` is the sha256 of the binary it was probed from ("" if recorded by hand).

    `architectures`: the models it loads, by GGUF `general.architecture`; empty when that is not known.
    """

    name: str
    version: str
    digest: str = ""
    flags: tuple[Flag, ...]
    architectures: tuple[str, ...] = ()

    def index(self) -> dict[str, Flag]:
        """Spelling → flag, negations included; build it once and keep it."""
        return {name: flag for flag in self.flags for name in (*flag.names, *flag.negations)}
