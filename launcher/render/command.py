"""The command of each server of a fleet: arguments for one build, environment, digest. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from launcher.base.environment import libraries
from launcher.errors import Finding, Fix, Severity, fault
from launcher.ir.backends import BACKENDS
from launcher.ir.config import GpuConfig, ServerConfig
from launcher.ir.dialect import Dialect, Flag
from launcher.ir.plan import FleetPlan, ServerPlan
from launcher.render.extra import (
    check_architecture,
    check_environment,
    check_extra_args,
    known,
    refused_value,
    walk,
)
from launcher.render.quoting import bad_characters
from launcher.render.spellings import TABLE, Alternatives, Meaning, Placement

_OWN_NAME = re.compile(rf"({'|'.join(BACKENDS)})(\d+)")


def server_words(
    server: ServerPlan,
    dialect: Dialect,
    binary: str,
    gpus: Mapping[str, GpuConfig],
    config: ServerConfig | None = None,
) -> tuple[tuple[str, ...], tuple[Finding, ...]]:
    """The words that start `server` with `binary`, and what `dialect` refuses of them.

    `gpus` is hardware.gpus of its host.
    Findings: `engine/unknown-flag`, `engine/bad-value`, `engine/deprecated-flag`, `engine/flag-conflict`,
    `engine/secret-in-argv`, `engine/unknown-architecture`, `engine/override-key`,
    `render/unknown-device`, `render/no-endpoint`, `render/bad-character`.
    `config` is what the server was written as: a choice that follows from another is found where that one stands.
    """
    index = known(dialect).flags
    draft = server.config.draft
    own = server.settings.devices if draft is None or draft.devices is None else draft.devices
    seeing = (server.config.projector_device,) if server.config.projector_device not in (None, "cpu") else ()
    together = tuple(d for d in dict.fromkeys((*server.settings.devices, *own, *seeing)) if d is not None)
    placement, found = place(together, gpus, f"servers.{server.name}.devices")
    names = dict(zip(together, placement.devices, strict=False))
    placement = placement._replace(
        devices=tuple(names[d] for d in server.settings.devices if d in names),
        draft=tuple(names[d] for d in own if d in names),
        projector=tuple(names[d] for d in seeing if d in names),
    )
    findings = [*found, *check_architecture(server, dialect)]
    theirs = [flag for _, _, flag, _ in walk(server.config.extra_args, index) if flag is not None]
    words = [binary]
    for meaning in TABLE:
        if theirs and meaning.soft and any(index.get(flag) in theirs for flag in meaning.owns if flag in index):
            continue
        alternatives = meaning.spell(server, placement)
        if not alternatives:
            continue
        chosen = next((a for a in alternatives if not refusals(a, index)), None)
        if chosen:
            words += chosen
        elif any(alternatives):
            may_be_silent = chosen is not None
            findings.append(_unspoken(asked_by(meaning, server, config), meaning, alternatives, dialect, may_be_silent))
    findings += check_extra_args(server, dialect)
    findings += check_environment(server.config.env, f"servers.{server.name}.env", dialect)
    argv = (*words, *server.config.extra_args)
    findings += bad_characters(words, f"servers.{server.name}")
    for position, word in enumerate(server.config.extra_args):
        findings += bad_characters([word], f"servers.{server.name}.extra_args.{position}")
    return argv, tuple(findings)


def place(names: tuple[str, ...], gpus: Mapping[str, GpuConfig], key: str) -> tuple[Placement, tuple[Finding, ...]]:
    """llama.cpp's names of the devices `names`, for `--device` and `--rpc`; findings at `key` for unknown ones.

    A name of the form `cuda1` says backend and number itself. Others are found in `gpus` (hardware.gpus): the
    number is the position among the entries of that backend. RPC devices count in the order of their endpoints.
    """
    devices: list[str] = []
    rpc: list[str] = []
    findings: list[Finding] = []
    for name in names:
        own = _OWN_NAME.fullmatch(name)
        gpu = gpus.get(name)
        if gpu is not None and gpu.backend == "rpc":
            if gpu.endpoint is None:
                findings.append(_no_endpoint(name))
            devices.append(f"RPC{len(rpc)}")
            rpc.append(gpu.endpoint or "")
        elif own is not None and (gpu is None or gpu.backend == own[1]):
            devices.append(f"{BACKENDS[own[1]].device}{own[2]}")
        elif gpu is not None:
            siblings = [n for n, g in gpus.items() if g.backend == gpu.backend]
            devices.append(f"{BACKENDS[gpu.backend].device}{siblings.index(name)}")
        else:
            findings.append(_unknown(name, gpus, key))
    return Placement(devices=tuple(devices), rpc=tuple(rpc)), tuple(findings)


def _unknown(name: str, gpus: Mapping[str, GpuConfig], key: str) -> Finding:
    there = ", ".join(gpus) or "none"
    return fault("render/unknown-device", key, f"no device {name!r}; hardware has {there}")


def _no_endpoint(name: str) -> Finding:
    key = f"hardware.gpus.{name}.endpoint"
    message = f"device {name} has backend rpc but no endpoint"
    fixes = (Fix(override=f"{key}=127.0.0.1:50052", effect="where its ggml-rpc-server listens"),)
    return fault("render/no-endpoint", key, message, fixes=fixes)


def placement_prefix(server: ServerPlan) -> tuple[str, ...]:
    """`numactl …` for a memory policy (with the CPUs), `taskset …` for CPUs alone, nothing otherwise."""
    if server.config.numa is None:
        return ("taskset", "--cpu-list", server.config.cpus) if server.config.cpus else ()
    nodes = ",".join(str(n) for n in server.config.numa.nodes) or "all"
    policy = {"interleave": "interleave", "preferred": "preferred", "bind": "membind"}[server.config.numa.policy]
    cpus = (f"--physcpubind={server.config.cpus}",) if server.config.cpus else ()
    return ("numactl", *cpus, f"--{policy}={nodes}", "--")


def refusals(words: tuple[str, ...], index: Mapping[str, Flag]) -> tuple[str, ...]:
    """Why a build refuses `words` (flags with their values), one sentence each; empty if it accepts them."""
    reasons: list[str] = []
    switch: str | None = None
    for _, word, flag, values in walk(words, index):
        if flag is None:
            return (*reasons, f"{switch} takes no value" if switch else f"{word} is not known")
        if flag.removed:
            return (f"{word} was removed: {flag.help}",)
        if len(values) < flag.takes(word):
            return (f"{word} takes a value",)
        reasons += [reason for value in values if (reason := refused_value(flag, word, value))]
        switch = None if values else word
    return tuple(reasons)


def asked_by(meaning: Meaning, server: ServerPlan, config: ServerConfig | None) -> str:
    """The config key that asks for a choice: its own, or that of what it follows from where its own is left out."""
    own = ".".join(filter(None, ("servers", server.name, meaning.key)))
    if config is None or not meaning.through or _is_written(config, meaning.key):
        return own
    absolute = (key.format(name=server.name) for key in meaning.through if "{" in key)
    fields = (f"servers.{server.name}.{key}" for key in meaning.through if _is_written(config, key))
    return next(iter((*fields, *absolute, own)))


def _is_written(config: ServerConfig, field: str) -> bool:
    known = next((f for f in msgspec.structs.fields(ServerConfig) if f.name == field), None)
    return known is not None and getattr(config, field) != known.default


def _unspoken(key: str, meaning: Meaning, alternatives: Alternatives, dialect: Dialect, may_be_silent: bool) -> Finding:
    """The finding for a choice that this build has no flag for: an error where silence is certainly wrong."""
    index = known(dialect).flags
    first = " ".join(next(words for words in alternatives if words))
    if may_be_silent:
        severity: Severity = "note" if meaning.soft else "warning"
        message = f"llama-server {dialect.name} does not know `{first}`: its own default stays"
    else:
        severity = "error"
        message = f"llama-server {dialect.name} cannot be told {meaning.key or 'this'}: it refuses `{first}`"
    notes = tuple(dict.fromkeys(reason for words in alternatives for reason in refusals(words, index)))
    return fault("engine/unknown-flag", key, message, *notes, severity=severity)


Engines = Mapping[str, tuple[str, Dialect]]
"""Engine name → its binary and its dialect."""


class Command(NamedTuple):
    """The command of one server. `words` begin with the binary; `prefix` sets CPUs and memory policy (own runtime)."""

    prefix: tuple[str, ...]
    words: tuple[str, ...]
    env: dict[str, str]

    @property
    def argv(self) -> tuple[str, ...]:
        """The arguments that a supervisor executes."""
        return (*self.prefix, *self.words)

    @property
    def digest(self) -> str:
        """`sha256:…` of argv."""
        from launcher.manifest import argv_digest  # noqa: PLC0415 - a plan needs none, nor what the runtime reads

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
        own = server_command(server, plan, engines)[1] if rungs else ()
        findings += dict.fromkeys(finding for _, found in rungs for finding in found if finding not in own)
    return commands, tuple(findings)


def server_command(server: ServerPlan, plan: FleetPlan, engines: Engines) -> tuple[Command, tuple[Finding, ...]]:
    """The command of one server, and what its build refuses."""
    binary, dialect = engines[server.config.engine]
    gpus = plan.config.hardware.machine(server.on).gpus
    words, found = server_words(server, dialect, binary, gpus, plan.config.servers.get(server.name))
    engine = plan.config.engines.get(server.config.engine)
    given = {**libraries(engine.library_path), **engine.env} if engine is not None else {}
    env = dict(sorted({**given, **server.config.env}.items()))  # the server's own win
    bad = bad_characters(env.values(), f"servers.{server.name}.env")
    return Command(placement_prefix(server), words, env), (*found, *bad)
