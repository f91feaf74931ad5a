"""Compare a plan with this host: its files, memory and ports, and the binaries that are really here."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from launcher import engine
from launcher.base.environment import libraries, withheld
from launcher.base.programs import why_not_runnable
from launcher.cli.findings import counted
from launcher.compiler import Compilation, hosts_of, on_host
from launcher.errors import ConfigError, EngineError, Finding, LaunchError, fault
from launcher.files.state import deployment_state_dir, state_root
from launcher.ir.backends import BACKENDS
from launcher.ir.dialect import Dialect
from launcher.ir.fleet import FleetManifest, RoutingTable
from launcher.ir.host import HostGpu
from launcher.plan.peers import peer_devices
from launcher.supervise import offline_status, port_owner


class Binaries(NamedTuple):
    """What the binaries on this host answer: findings, a line each for people, and the GPUs that they see.

    `asked`: whether one of them listed its devices.
    """

    findings: tuple[Finding, ...]
    lines: tuple[tuple[str, str], ...]
    gpus: dict[str, HostGpu]
    asked: bool


def host_findings(
    compiled: Compilation, manifest: FleetManifest, routes: RoutingTable
) -> tuple[tuple[Finding, ...], tuple[tuple[str, str], ...]]:
    """Findings against running `manifest` on this host now, with locations and without waived ones.

    And what was looked at: (subject, result) for people.
    """
    from launcher import catalog, config, hardware, plan

    state = deployment_state_dir(manifest.deployment, manifest.supervisor.state_dir)
    alive = offline_status(state)
    running = {p.name: sum(p.measured_bytes.values()) for p in alive.processes if p.pid is not None}
    if alive.runtime_pid is not None:
        running["front"] = 0
    binaries = ask_binaries(compiled)
    kept_out = _withheld(compiled)
    inventory = hardware.take_inventory()
    listed = {gpu.name for gpu in inventory.gpus}
    seen = (gpu for name, gpu in binaries.gpus.items() if name not in listed)  # by a binary, and by no driver
    inventory = msgspec.structs.replace(inventory, gpus=(*inventory.gpus, *seen))
    facts = hardware.gather_facts(manifest, routes, inventory, running=running, state_dir=state, owner=port_owner)
    to_come, free = hardware.missing_models(catalog.vault(compiled.plan.config, compiled.catalog))
    facts = msgspec.structs.replace(
        facts, unseen_gpus=_unseen(compiled, binaries), models_to_come=to_come, models_free=free
    )
    found = (*hardware.check_host(manifest, facts), *binaries.findings, *kept_out)
    located = config.locate(plan.without_waived(compiled.plan.config, found), compiled.composed.sources)
    return located, (*binaries.lines, *hardware.describe_checks(manifest, facts))


def _withheld(compiled: Compilation) -> tuple[Finding, ...]:
    """A note naming variables in this environment that a llama-server would read and does not get. No values."""
    known = {flag.env for _, dialect in compiled.engines.values() for flag in dialect.flags if flag.env}
    names = withheld(os.environ, known)
    if not names:
        return ()
    message = f"{', '.join(names)} of this environment {'is' if len(names) == 1 else 'are'} not passed on to servers"
    note = "what is planned is what runs: use a field, or servers.NAME.env, where it is checked"
    return (fault("host/environment-withheld", "", message, note, severity="note"),)


def ask_binaries(compiled: Compilation) -> Binaries:
    """Check command lines that were written for recorded builds with the binaries here; list their devices.

    One line for each engine: its build, and how many flags of how many servers were checked.
    """
    from launcher.render import render_commands

    findings: list[Finding] = []
    lines: list[tuple[str, str]] = []
    gpus: dict[str, HostGpu] = {}
    real: dict[str, tuple[str, Dialect]] = dict(compiled.engines)
    asked = False
    for name, (binary, recorded) in compiled.engines.items():
        if why_not_runnable(binary) is not None:
            lines.append((f"engine {name}", f"{binary} cannot be run here; planned for {recorded.name}"))
            continue  # the host's check says so
        entry = compiled.plan.config.engines[name]
        env = libraries(entry.library_path) or None
        try:
            real[name] = (binary, engine.probe(Path(binary), state_root() / "dialects", key=f"engines.{name}", env=env))
            if compiled.plan.config.hardware.gpus:
                seen, missing = _devices(compiled, name, Path(binary), env)
                asked = asked or seen is not None
                gpus |= seen or {}
                findings += missing
        except LaunchError as error:
            findings += error.findings
            lines.append((f"engine {name}", f"{binary} does not say what it accepts; planned for {recorded.name}"))
            continue
        mine = [compiled.commands[s.name].argv for s in compiled.plan.servers if s.config.engine == name]
        flags = {word for argv in mine for word in argv if word in real[name][1].index()}
        servers = counted(len(mine), "server")
        lines.append((f"engine {name}", f"{real[name][1].name}: {len(flags)} flags of {servers}, {binary}"))
    reported = {(f.code, f.key) for f in compiled.findings}
    _, refused = render_commands(compiled.plan, real)
    findings += (f for f in refused if (f.code, f.key) not in reported)
    return Binaries(tuple(findings), tuple(lines), gpus, asked)


def _devices(
    compiled: Compilation, engine_name: str, binary: Path, env: Mapping[str, str] | None
) -> tuple[dict[str, HostGpu] | None, list[Finding]]:
    """The config's GPUs that a binary sees (None: it does not say), and findings for those its servers lack.

    Raises EngineError (`engine/probe-failed`) for a binary that hangs.
    """
    from launcher.render.command import place

    absent = peer_devices(compiled.plan.config)  # `rpc`: each start waits for them, and they need not be up yet
    gpus = {name: gpu for name, gpu in compiled.plan.config.hardware.gpus.items() if name not in absent}
    placed = {name: place((name,), gpus, "")[0] for name in gpus}
    endpoints = ",".join(dict.fromkeys(e for at in placed.values() for e in at.rpc if e))
    try:
        listed = engine.list_devices(binary, rpc=endpoints, env=env)
    except engine.NoAnswerError as error:
        raise EngineError([engine.probe_failed(f"engines.{engine_name}", f"{binary} --list-devices {error}")]) from None
    if listed is None:
        return None, []
    by_name = {device.name: device for device in listed}
    remote = [name for name, gpu in gpus.items() if gpu.backend == "rpc"]
    own = {n: f"RPC{remote.index(n)}" if n in remote else at.devices[0] for n, at in placed.items()}
    seen = {}
    for name, gpu in gpus.items():
        if (device := by_name.get(own[name])) is not None:
            total, free = device.total_bytes, device.free_bytes
            seen[name] = HostGpu(name=name, backend=gpu.backend, model=device.model, vram_bytes=total, free_bytes=free)
    servers = [s for s in compiled.plan.servers if s.config.engine == engine_name]
    note = f"a build for another backend, or the wrong libraries: engines.{engine_name}.library_path"
    missing = []
    for server in servers:
        if gone := [own[d] for d in server.settings.devices if d not in seen and d not in absent]:
            message = f"llama-server sees no {', '.join(gone)} here; it sees {', '.join(by_name) or 'no device'}"
            missing.append(fault("engine/device-missing", f"servers.{server.name}.devices", message, note))
    return seen, missing


def _unseen(compiled: Compilation, binaries: Binaries) -> tuple[str, ...]:
    """GPUs of the config that no driver lists, if no binary could be asked for them, and those of RPC peers."""
    gpus = {} if binaries.asked else compiled.plan.config.hardware.gpus
    unlisted = (name for name, gpu in gpus.items() if not BACKENDS[gpu.backend].driver)
    return tuple(dict.fromkeys((*unlisted, *peer_devices(compiled.plan.config))))


def part_of_host(compiled: Compilation, host: str | None) -> Compilation:
    """The part of `compiled` that one host runs: `host`, else the one with this machine's name.

    A fleet for one machine is returned as it is. Raises ConfigError if `host` is no host of the fleet, or if none is
    given and this machine is none of them.
    """
    names = hosts_of(compiled)
    wanted = host if host is not None else socket.gethostname().partition(".")[0]
    if wanted in names:
        return on_host(compiled, wanted)
    if host is None and not names:
        return compiled
    deployment = compiled.plan.deployment
    if not names:
        message = f"{deployment} is for one machine, and --host {host} names one of several"
    elif host is None:
        message = f"{deployment} is for {len(names)} hosts, and this machine ({wanted}) is none of them"
    else:
        message = f"{deployment} has no host {host}"
    notes = (f"say which one: --host {' | '.join(names)}",) if names else ()
    raise ConfigError.of("config/which-host", message, *notes, key="hardware.hosts")
