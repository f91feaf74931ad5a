"""How each server of a fleet is run: words, environment, digest. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from launcher.errors import Finding
from launcher.ir.dialect import Dialect
from launcher.ir.plan import FleetPlan, ServerPlan
from launcher.manifest import argv_digest
from launcher.render.argv import placement_prefix, server_words
from launcher.render.characters import bad_characters

Engines = Mapping[str, tuple[str, Dialect]]
"""Engine name → its binary and its dialect."""


class Command(NamedTuple):
    """How one server is run. `words` begin with the binary; `prefix` places the process where nobody else does."""

    prefix: tuple[str, ...]
    words: tuple[str, ...]
    env: dict[str, str]

    @property
    def argv(self) -> tuple[str, ...]:
        """What a supervisor executes."""
        return (*self.prefix, *self.words)

    @property
    def digest(self) -> str:
        """`sha256:…` of argv."""
        return argv_digest(self.argv)


def render_commands(plan: FleetPlan, engines: Engines) -> tuple[dict[str, Command], tuple[Finding, ...]]:
    """The command of every server of `plan`, by name in plan order, and everything that the builds refuse."""
    commands: dict[str, Command] = {}
    findings: list[Finding] = []
    for server in plan.servers:
        binary, dialect = engines[server.engine]
        words, found = server_words(server, dialect, binary, plan.config.hardware.gpus)
        env = server_environment(server, plan)
        findings += found
        findings += bad_characters(env.values(), f"servers.{server.name}.env")
        commands[server.name] = Command(placement_prefix(server), words, env)
    return commands, tuple(findings)


def server_environment(server: ServerPlan, plan: FleetPlan) -> dict[str, str]:
    """Environment of `server`: the engine's library path and variables, then its own, which win."""
    engine = plan.config.engines.get(server.engine)
    env: dict[str, str] = {}
    if engine is not None:
        if engine.library_path:
            env["LD_LIBRARY_PATH"] = ":".join(engine.library_path)
        env.update(engine.env)
    env.update(server.env)
    return dict(sorted(env.items()))
