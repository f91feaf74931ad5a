"""systemd units of a fleet: one service a server, one target and one slice a tier. Pure.

Facts behind the choices are in the templates beside the lines they explain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from launcher.base.addresses import is_path
from launcher.errors import Finding
from launcher.ir.config import RuntimeConfig
from launcher.ir.plan import FleetPlan, ServerPlan
from launcher.render.command import Command
from launcher.render.passed import files_of
from launcher.render.probes import reachable_url
from launcher.render.server_keys import own_key_file, with_credential
from launcher.render.socket_folders import own_folder, without_folder
from launcher.render.systemd_quote import credential_path, quote_assignments, quote_bind, quote_command
from launcher.render.unit_names import (
    is_loopback,
    runtime_user,
    slice_name,
    starts_at_boot,
    target_name,
    unit_name,
)

EXPOSURE_CPU, EXPOSURE_GPU, EXPOSURE_COMMAND, EXPOSURE_RUNTIME = 1.0, 1.5, 1.5, 2.0
"""What `systemd-analyze security` may say at most of each kind of unit; `launch install` holds units to it."""
EXPOSURE_OPEN = 0.2
"""More for a server that other machines reach."""
EXPOSURE_ALONE = 0.6
"""Less for a server that has no network: it is reached by its unix socket."""

RESTART_S = 3.0
"""What ended waits at least so long for systemd to start it again: a living runtime, which decides, is quicker."""

LONGEST_S = 10**9
"""The longest interval a unit gets (32 years): systemd counts microseconds in 64 bits, and refuses more."""

RAM = "ram"
MIB = 1024**2
GPU_HOST_BYTES = 2048 * MIB
"""Room for a GPU driver's host memory, which no plan counts."""

HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 # names of what ProtectHome and PrivateTmp hide
"""Directories that the sandbox hides; files of a server below them are bound in, read-only."""

_DEVICES_BY_BACKEND = {
    "cuda": ("char-nvidia", "char-nvidia-uvm", "char-nvidia-caps"),
    "vulkan": ("char-nvidia", "char-nvidia-uvm", "char-nvidia-caps", "char-drm"),
    "rocm": ("char-drm", "/dev/kfd"),
    "sycl": ("char-drm",),
}
_GROUPS = ("render", "video")


def service_values(
    server: ServerPlan, plan: FleetPlan, command: Command, *, unit: str
) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """Everything that `server.service.j2` needs for `server`, or a fallback of it; `command` is how it is run."""
    deploy, runtime = plan.config.deploy, plan.config.runtime
    gpus = [plan.config.hardware.gpus[name] for name in server.settings.devices if name in plan.config.hardware.gpus]
    allow = device_nodes(gpu.backend for gpu in gpus)
    hidden = hidden_paths(server, command.words[0])
    asks = any(gpu.backend == "rpc" for gpu in gpus)
    alone = is_path(server.config.host) and not asks
    loopback = alone or (is_loopback(server.config.host) and not asks)
    exposure = (EXPOSURE_GPU if allow else EXPOSURE_CPU) + EXPOSURE_OPEN * (not loopback) - EXPOSURE_ALONE * alone
    keys = own_key_file(server.config.extra_args)
    credential = keys is not None and deploy.scope != "user"
    quoted = quote_command(command.words)
    quoted = with_credential(command.words, quoted) if credential else quoted
    boot = starts_at_boot(server) and unit == unit_name(plan, server.name)
    waited_for = boot and any(server.name in other.after for other in plan.servers if starts_at_boot(other))
    values = {
        "unit": unit,
        "description": " ".join(f"llama-server {server.name}: {server.entry}".split()).replace("%", "%%"),
        "after": ("network.target", *(unit_name(plan, n) for n in server.after if boot)),
        "target": target_name(plan, server.tier),
        "slice": slice_name(plan, server.tier),
        **start_limit(server, runtime),
        **_resources(server, plan),
        "digest": command.digest,
        "command": " \\\n    ".join(_lines(quoted)),
        "gate": _gate(server) if waited_for else None,
        "boot": boot,
        "credential": credential_path(keys) if credential and keys else None,
        "start_timeout_s": math.ceil(min(LONGEST_S, server.start_timeout_s)),
        "stop_timeout_s": math.ceil(server.config.stop_grace_s),
        "restart_s": f"{max(runtime.backoff_s, RESTART_S):g}",
        "environment": quote_assignments(command.env),
        "user_scope": deploy.scope == "user",
        "user": deploy.user,
        "exposure": round(exposure, 1),
        "groups": _GROUPS if any(d in ("char-drm", "/dev/kfd") for d in allow) else (),
        "cache_directory": f"{deploy.unit_prefix}-{server.name}" if allow else None,
        "hardening": deploy.hardening,
        "sees_others": False,
        "bind_read_only": tuple(quote_bind(path) for path in hidden),
        "denied_calls": "~@privileged" if allow or _needs_resources(server) else "~@privileged @resources",
        "ports": (server.port,) if server.port else (),
        "loopback": loopback,
        "alone": alone,
        "device_allow": allow,
        **_socket(server, plan),
    }
    bad = _bad_paths(server, (*hidden, *([keys] if keys else [])))
    return values, (*bad, *(without_folder(server, plan) if unit == unit_name(plan, server.name) else ()))


def _socket(server: ServerPlan, plan: FleetPlan) -> dict[str, Any]:
    """The folder of its unix socket, and the group that may connect to it: the runtime's, where that is another user.

    What it makes is otherwise for its own user alone.
    """
    others = is_path(server.config.host) and plan.config.deploy.scope == "system" and plan.config.deploy.user is None
    return {
        "socket_folder": own_folder(server, plan),
        "socket_group": runtime_user(plan) if others else None,
        "umask": "0007" if others else "0077",
    }


def device_nodes(backends: Iterable[str]) -> tuple[str, ...]:
    """What a process opens for GPUs of `backends`."""
    return tuple(dict.fromkeys(node for backend in backends for node in _DEVICES_BY_BACKEND.get(backend, ())))


def _gate(server: ServerPlan) -> str:
    """A shell's one line that ends when the server has loaded, or is gone: systemd alone would not see the latter."""
    host = server.config.host
    url = f"--unix-socket {host} http://localhost" if is_path(host) else reachable_url(host, server.port)
    url = f"{url}/health"
    script = f"until curl -sf -o /dev/null --noproxy '*' {url}; do kill -0 $$MAINPID || exit 1; sleep 0.2; done"
    return f'/bin/sh -c "{script}"'


def start_limit(server: ServerPlan, runtime: RuntimeConfig) -> dict[str, Any]:
    """How often it may fail, within what time: long enough for that many whole starts."""
    attempts = max(1, runtime.crash_loop_failures)
    starts_s = attempts * (server.start_timeout_s + runtime.backoff_s) * 1.1
    return {
        "start_limit_burst": attempts,
        "start_limit_interval_s": math.ceil(min(LONGEST_S, max(runtime.crash_loop_window_s, starts_s))),
    }


def _resources(server: ServerPlan, plan: FleetPlan) -> dict[str, Any]:
    """Memory, CPUs and nodes, as planned."""
    numa = server.config.numa
    return {
        "memory_max": memory_max(server),
        "memlock": "infinity" if "mlock" in server.settings.load_mode else "8M",
        "oom_score_adjust": plan.config.tiers[server.tier].oom_score_adjust,
        "cpus": server.config.cpus,
        "numa_policy": numa.policy if numa else None,
        "numa_mask": (",".join(str(n) for n in numa.nodes) or "all") if numa else None,
    }


def memory_max(server: ServerPlan) -> str:
    """Bytes for `MemoryMax=`, or `infinity` where the prompt cache has no limit or nothing was planned.

    peak + growth + every page of the mapped files + 10 % + 512 MiB: with a mapping, a limit below anonymous plus
    file-backed memory does not fail, it crawls. Shared pages count here for each server: the first to touch pays.
    """
    ram = [m for m in server.memory if m.device == RAM]
    if not ram or server.settings.cache_ram_mib < 0:
        return "infinity"
    mapped = server.settings.load_mode in ("mmap", "mmap+mlock")
    private = sum(max(m.peak_bytes, m.committed_bytes) + m.growth_bytes for m in ram)
    files = sum(max(m.file_bytes, m.model_bytes + m.draft_bytes if mapped else 0) for m in ram)
    total = private + files
    return str(total + total // 10 + 512 * MIB + (GPU_HOST_BYTES if server.settings.devices else 0))


def tier_values(plan: FleetPlan, tier: str) -> dict[str, Any]:
    """What the target and the slice of `tier` need: a boot starts what is always on, without the runtime."""
    boot = plan.config.tiers[tier].start == "boot"
    members = [s.name for s in plan.servers if s.tier == tier and starts_at_boot(s)]
    members += [s.name for s in plan.services if boot and s.config.tier == tier and s.config.builtin is None]
    return {"tier": tier, "wants": tuple(unit_name(plan, name) for name in members), "boot": boot} | boot_target(plan)


def boot_target(plan: FleetPlan) -> dict[str, str]:
    """What boots."""
    return {"boot_target": "default.target" if plan.config.deploy.scope == "user" else "multi-user.target"}


def _needs_resources(server: ServerPlan) -> bool:
    """Whether the server itself sets memory policy, affinity or priority (`--numa`, `--prio`, `--cpu-…`)."""
    return any(word.startswith(("--numa", "--prio", "--cpu-", "-C", "--poll")) for word in server.config.extra_args)


def hidden_paths(server: ServerPlan, binary: str) -> tuple[str, ...]:
    """What the sandbox would hide from `server`: its files, and the directory of its binary (libraries lie there)."""
    wanted = (*files_of(server), *((binary.rpartition("/")[0],) if binary.startswith("/") else ()))
    return tuple(sorted({path for path in wanted if path.startswith(tuple(f"{d}/" for d in HIDDEN))}))


def _bad_paths(server: ServerPlan, paths: tuple[str, ...]) -> Iterator[Finding]:
    """Findings for paths that `BindReadOnlyPaths=` and `LoadCredential=` have no way to write."""
    for path in paths:
        if any(c < " " for c in path):
            message = f"{path!r} has a control character and cannot be bound into a sandbox"
            field = "extra_args" if path == own_key_file(server.config.extra_args) else "model"
            yield Finding(
                code="render/bad-character", severity="error", key=f"servers.{server.name}.{field}", message=message
            )


def _lines(words: tuple[str, ...]) -> tuple[str, ...]:
    """Quoted `words`, one flag with its values a line."""
    lines: list[str] = []
    for word in words:
        if lines and not word.startswith(("-", '"-')):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return tuple(lines)
