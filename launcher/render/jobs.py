"""One llama-server as a batch script of Slurm: what it asks its node for, and how it is run there. Pure."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from launcher.base.environment import DEVICE_VARIABLES, PASSED_ON
from launcher.ir.backends import BACKENDS
from launcher.ir.config import SlurmConfig
from launcher.ir.plan import FleetPlan, ServerPlan
from launcher.render.command import Command, Engines, server_command
from launcher.render.pods import as_in_pod, card_amounts, pod_port
from launcher.render.quoting import shell_lines
from launcher.render.units import memory_max, start_limit, starts_at_boot
from launcher.sizes import MIB

PLACES, LOGS = "places", "logs"
"""Folders of the fleet's directory: where jobs say where they are, and where they write."""
_FURTHER = 9
_FURTHER_STEP = 1000
"""Number of further ports tried where one is taken, and the distance between them: the next one is the next
server's."""
_LAST_PORT = 65535
_FRONT_BYTES = 1024 * MIB


def job_command(server: ServerPlan, plan: FleetPlan, engines: Engines) -> tuple[Command, list[str]]:
    """The command of `server` on whatever node it lands; and what is lost of its plan there.

    Slurm numbers a job's cards from 0, and gives whole CPUs: more threads than CPUs would wait for each other.
    """
    settings = plan.config.deploy.slurm or SlurmConfig()
    here, lost = as_in_pod(server, plan)
    cpus, threads = job_cpus(server, plan), _threads(server)
    if cpus < threads:
        lost.append("threads for which its node has no CPU of its own: Slurm gives a CPU to one job")
    allowed = msgspec.structs.replace(
        here.settings, threads=min(here.settings.threads, cpus), threads_batch=min(here.settings.threads_batch, cpus)
    )
    config = msgspec.structs.replace(here.config, host=settings.listen)
    command, _ = server_command(
        msgspec.structs.replace(here, port=pod_port(server.port), settings=allowed, config=config), plan, engines
    )
    if command.prefix or server.config.cpus or server.config.numa:
        lost.append("CPUs and NUMA nodes: Slurm chooses them (TaskPlugin, --hint, --mem-bind: deploy.slurm.options)")
    if "mlock" in server.settings.load_mode:
        lost.append("locked memory: how much a job may lock is slurmd's (LimitMEMLOCK, PropagateResourceLimits)")
    return command._replace(prefix=()), lost


def job_cpus(server: ServerPlan, plan: FleetPlan) -> int:
    """CPUs of its job: its threads, or its share where all that may run at once have more threads than the node CPUs.

    Those that take turns count once.
    """
    settings = plan.config.deploy.slurm or SlurmConfig()
    cores = plan.config.hardware.machine(server.on).cpu.logical_cores
    alone = server.on in settings.constraints
    there = [server] if alone else [s for s in plan.servers if s.on == server.on and s.starts != "never"]
    most: dict[str, int] = {}
    for one in there:
        turn = f"turn {one.config.exclusive}" if one.config.exclusive is not None else one.name
        most[turn] = max(most.get(turn, 0), _threads(one))
    share = min(1.0, cores / sum(most.values()))
    return max(1, math.floor(_threads(server) * share))


def job_values(
    server: ServerPlan, plan: FleetPlan, command: Command, *, name: str, folder: str
) -> tuple[dict[str, Any], list[str]]:
    """What `job.sbatch.j2` needs for `server`, whose job has this `name`, and what its node is not asked for.

    `folder`: the fleet's.
    """
    settings = plan.config.deploy.slurm or SlurmConfig()
    asked, lost = _asked(server, plan, settings)
    limit = start_limit(server.start_timeout_s, plan.config.runtime)
    restarts = starts_at_boot(server)
    port = pod_port(server.port)
    values = {
        "description": " ".join(f"llama-server {server.name}: {server.entry}".split()),
        "options": (
            f"--job-name={name}",
            f"--comment={server.name}",
            "--dependency=singleton",
            "--nodes=1",
            "--ntasks=1",
            *asked,
            *common_options(settings),
            "--requeue" if restarts else "--no-requeue",
            f"--output={folder}/{LOGS}/{server.name}.log",
            "--open-mode=append",
        ),
        "kept": " | ".join(
            [*sorted({*PASSED_ON, *DEVICE_VARIABLES} - {"GGML_VK_DEVICE"}), "LAUNCH_*", "LC_*", "SLURM*"]
        ),
        "places": shlex.quote(f"{folder}/{PLACES}"),
        "name": server.name,
        "listen": shlex.quote(settings.listen),
        "port": port,
        "further": " ".join(str(p) for i in range(1, _FURTHER + 1) if (p := port + i * _FURTHER_STEP) <= _LAST_PORT)
        or port,
        "command": " \\\n    ".join((*_own_environment(command.env), *_lines(command.words))),
        "restarts": restarts,
        "burst": limit["start_limit_burst"],
        "interval_s": limit["start_limit_interval_s"],
        "restart_s": limit["restart_s"],
    }
    return values, lost


def front_values(plan: FleetPlan, name: str) -> dict[str, Any]:
    """What `front.sbatch.j2` needs, for whoever runs the front as a job."""
    settings = plan.config.deploy.slurm or SlurmConfig()
    held = plan.config.runtime.front.max_held_bytes
    return {
        "options": (
            f"--job-name={name}",
            "--nodes=1",
            "--ntasks=1",
            "--cpus-per-task=1",
            f"--mem={_mib(_FRONT_BYTES + held)}M",
            *common_options(settings),
            "--requeue",
            "--output=front-%j.log",
        ),
        "launch": shlex.quote(plan.config.deploy.launch),
    }


def common_options(settings: SlurmConfig) -> tuple[str, ...]:
    """Options with which every job is submitted."""
    named = {name: getattr(settings, name) for name in ("partition", "account", "qos", "time")}
    return (*(f"--{name}={value}" for name, value in named.items() if value is not None), *settings.options)


def _asked(server: ServerPlan, plan: FleetPlan, settings: SlurmConfig) -> tuple[list[str], list[str]]:
    """CPUs, memory, cards and the node, as options; what there are no options for."""
    options, lost = [f"--cpus-per-task={job_cpus(server, plan)}"], []
    limit = memory_max(server)
    if limit == "infinity":
        lost.append("a memory limit: the prompt cache has none (cache_ram_mib)")
    else:
        options.append(f"--mem={_mib(int(limit))}M")
    gpus = plan.config.hardware.machine(server.on).gpus
    called = {name: backend.gres for name, backend in BACKENDS.items() if backend.gres} | settings.gres
    cards = card_amounts(server.settings.devices, gpus, called, lost, "deploy.slurm.gres has no name")
    if cards:
        options.append("--gres=" + ",".join(f"{what}:{count}" for what, count in cards.items()))
    if server.on in settings.constraints:
        options.append(f"--constraint={settings.constraints[server.on]}")
    elif server.on:
        options.append(f"--nodelist={server.on}")
    return options, lost


def _threads(server: ServerPlan) -> int:
    return max(1, server.settings.threads, server.settings.threads_batch)


def _mib(size: int) -> int:
    """Whole MiB, enough for `size` bytes."""
    return -(-size // MIB)


def _own_environment(env: Mapping[str, str]) -> Iterable[str]:
    """`env` for the server alone: the script has variables and programs of its own (`PATH`, `SLURM_JOB_ID`)."""
    return ("env", *(shlex.quote(f"{name}={env[name]}") for name in sorted(env))) if env else ()


def _lines(words: Iterable[str]) -> Iterable[str]:
    """`words` quoted for a shell, a flag with its values a line; where it listens the script knows."""
    known = {"--host": '--host "$listen"', "--port": '--port "$port"'}
    return [known.get(line.partition(" ")[0], line) for line in shell_lines(words)]
