"""How each server of a fleet is run: words, environment, digest. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from launcher.base.environment import libraries
from launcher.errors import Finding
from launcher.ir.dialect import Dialect
from launcher.ir.plan import FleetPlan, ServerPlan
from launcher.manifest import argv_digest
from launcher.render.argv import placement_prefix, server_words
from launcher.render.characters import bad_characters
from launcher.render.extra import check_environment

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
        commands[server.name], found = server_command(server, plan, engines)
        findings += found
    for name, (_, dialect) in engines.items():
        if (entry := plan.config.engines.get(name)) is not None and entry.env:
            findings += check_environment(entry.env, f"engines.{name}.env", dialect)
    return commands, tuple(findings)


def rung_commands(plan: FleetPlan, engines: Engines) -> tuple[dict[str, tuple[Command, ...]], tuple[Finding, ...]]:
    """The commands of every worker's ladder, and what the builds refuse of them but not of the worker itself."""
    commands: dict[str, tuple[Command, ...]] = {}
    findings: list[Finding] = []
    for server in plan.servers:
        rungs = [server_command(rung.server, plan, engines) for rung in plan.ladders.get(server.name, ())]
        commands[server.name] = tuple(command for command, _ in rungs)
        known = set(server_command(server, plan, engines)[1]) if rungs else set()
        findings += dict.fromkeys(finding for _, found in rungs for finding in found if finding not in known)
    return commands, tuple(findings)


def server_command(server: ServerPlan, plan: FleetPlan, engines: Engines) -> tuple[Command, tuple[Finding, ...]]:
    """The command of one server, and what its build refuses."""
    binary, dialect = engines[server.config.engine]
    gpus = plan.config.hardware.machine(server.on).gpus
    words, found = server_words(server, dialect, binary, gpus, plan.config.servers.get(server.name))
    env = server_environment(server, plan)
    bad = bad_characters(env.values(), f"servers.{server.name}.env")
    return Command(placement_prefix(server), words, env), (*found, *bad)


def server_environment(server: ServerPlan, plan: FleetPlan) -> dict[str, str]:
    """Environment of `server`: the engine's library path and variables, then its own, which win."""
    engine = plan.config.engines.get(server.config.engine)
    env: dict[str, str] = {}
    if engine is not None:
        env.update(libraries(engine.library_path))
        env.update(engine.env)
    env.update(server.config.env)
    return dict(sorted(env.items()))
