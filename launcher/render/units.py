"""systemd units of a fleet: one service a server, one target and one slice a tier. Pure.

Facts behind the choices are in the templates beside the lines they explain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from launcher.errors import Finding
from launcher.ir.config import RuntimeConfig
from launcher.ir.plan import FleetPlan, ServerPlan
from launcher.render.command import Command
from launcher.render.probes import proof_request, reachable_url
from launcher.render.server_keys import own_key_file, with_credential
from launcher.render.systemd_quote import credential_path, quote_assignments, quote_bind, quote_command, quote_word
from launcher.render.unit_names import (
    FRONT,
    front_tier,
    is_loopback,
    libexec_dir,
    shared_user,
    slice_name,
    socket_path,
    target_name,
    turn_file,
    unit_name,
)

EXPOSURE_CPU, EXPOSURE_GPU, EXPOSURE_PYTHON, EXPOSURE_UNIX = 1.0, 1.5, 1.5, 0.3
"""What `systemd-analyze security` may say at most of each kind of unit; `launch install` holds units to it."""
EXPOSURE_NOTIFY = EXPOSURE_OPEN = 0.2
"""More for a watchdog (NotifyAccess=all), and for a server that other machines reach."""

WATCHDOG_S = 12
"""A server that has not answered for so long is killed and started again (`deploy.watchdog`)."""

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


def service_values(server: ServerPlan, plan: FleetPlan, command: Command) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """Everything that `server.service.j2` needs for `server`; `command` is how it is run."""
    deploy, runtime = plan.config.deploy, plan.config.runtime
    gpus = [plan.config.hardware.gpus[name] for name in server.devices if name in plan.config.hardware.gpus]
    allow = tuple(dict.fromkeys(d for gpu in gpus for d in _DEVICES_BY_BACKEND.get(gpu.backend, ())))
    hidden = _hidden_paths(server, command.words[0])
    path = socket_path(plan, server)
    url = f"unix:{path}" if path else reachable_url(server.host, server.port)
    words = command.words if path is None else _on_socket(command.words, path)
    proof = (server.name, url, *proof_request(server))
    exposure = EXPOSURE_GPU if allow else EXPOSURE_UNIX if path else EXPOSURE_CPU
    loopback = is_loopback(server.host) and not any(gpu.backend == "rpc" for gpu in gpus)
    exposure += EXPOSURE_NOTIFY * deploy.watchdog + EXPOSURE_OPEN * (not loopback)
    drains = server.exclusive is not None
    keys = own_key_file(server.extra_args)
    credential = keys is not None and deploy.scope != "user"
    as_root = "+" if credential else ""
    quoted = _quoted(words, wrapped=deploy.watchdog)
    quoted = with_credential(words, quoted) if credential else quoted
    drain_s = math.ceil(runtime.drain_timeout_s)
    values = {
        "unit": unit_name(plan, server.name),
        "description": " ".join(f"llama-server {server.name}: {server.model} {server.quantization}".split()).replace(
            "%", "%%"
        ),
        "after": ("network.target", *(unit_name(plan, n) for n in _ordered_after(server, plan))),
        **_exclusion(server, plan),
        "target": target_name(plan, server.tier),
        "slice": slice_name(plan, server.tier),
        **_start_limit(server, runtime),
        **_resources(server, plan),
        "digest": command.digest,
        "command": " \\\n    ".join(_lines(quoted)),
        "credential": credential_path(keys) if credential and keys else None,
        "key_file": quote_word(f"LAUNCH_KEY_FILE={keys}") if keys else None,
        "gate": as_root + libexec_command(plan, "launch-gate", *proof),
        "notify": libexec_command(plan, "launch-notify", str(WATCHDOG_S // 4), *proof),
        "watchdog_s": WATCHDOG_S if deploy.watchdog else None,
        "drain": as_root + libexec_command(plan, "launch-drain", url, str(drain_s)) if drains else None,
        "socket": path is not None,
        "shared_user": shared_user(plan, server.name),
        "private_network": path is not None and not allow,
        "start_timeout_s": math.ceil(min(LONGEST_S, server.start_timeout_s + _turn_wait_s(server, plan))),
        "stop_timeout_s": max(math.ceil(server.stop_grace_s), drain_s + 5 if drains else 0),
        "restart_s": f"{max(runtime.backoff_s, 0.1):g}",
        "environment": quote_assignments(command.env),
        "user_scope": deploy.scope == "user",
        "user": deploy.user,
        "exposure": round(exposure, 1),
        "groups": _GROUPS if any(d in ("char-drm", "/dev/kfd") for d in allow) else (),
        "cache_directory": f"{deploy.unit_prefix}-{server.name}" if allow else None,
        "hardening": deploy.hardening,
        "bind_read_only": tuple(quote_bind(path) for path in hidden),
        "denied_calls": "~@privileged" if allow or _needs_resources(server) else "~@privileged @resources",
        "ports": () if path else (server.port,),
        "loopback": loopback,
        "device_allow": allow,
    }
    return values, tuple(_bad_paths(server, (*hidden, *([keys] if keys else []))))


def _start_limit(server: ServerPlan, runtime: RuntimeConfig) -> dict[str, Any]:
    """How often it may fail, within what time: long enough for that many whole starts."""
    attempts = max(1, runtime.crash_loop_failures)
    starts_s = attempts * (server.start_timeout_s + runtime.backoff_s) * 1.1
    return {
        "start_limit_burst": attempts,
        "start_limit_interval_s": math.ceil(min(LONGEST_S, max(runtime.crash_loop_window_s, starts_s))),
    }


def _resources(server: ServerPlan, plan: FleetPlan) -> dict[str, Any]:
    """Memory, CPUs and nodes, as planned."""
    numa = server.numa
    return {
        "memory_max": memory_max(server),
        "memlock": "infinity" if "mlock" in server.load_mode else "8M",
        "oom_score_adjust": plan.tiers[server.tier].oom_score_adjust,
        "cpus": server.cpus,
        "numa_policy": numa.policy if numa else None,
        "numa_mask": (",".join(str(n) for n in numa.nodes) or "all") if numa else None,
    }


def memory_max(server: ServerPlan) -> str:
    """Bytes for `MemoryMax=`, or `infinity` where the prompt cache has no limit or nothing was planned.

    peak + growth + every page of the mapped files + 10 % + 512 MiB: with a mapping, a limit below anonymous plus
    file-backed memory does not fail, it crawls. Shared pages count here for each server: the first to touch pays.
    """
    ram = [m for m in server.memory if m.device == RAM]
    if not ram or server.cache_ram_mib < 0:
        return "infinity"
    mapped = server.load_mode in ("mmap", "mmap+mlock")
    private = sum(max(m.peak_bytes, m.committed_bytes) + m.growth_bytes for m in ram)
    files = sum(max(m.file_bytes, m.model_bytes + m.draft_bytes if mapped else 0) for m in ram)
    total = private + files
    return str(total + total // 10 + 512 * MIB + (GPU_HOST_BYTES if server.devices else 0))


def tier_values(plan: FleetPlan, tier: str) -> dict[str, Any]:
    """What the target and the slice of `tier` need. Of an exclusive group the target starts the default member."""
    here = [s for s in plan.servers if s.tier == tier]
    sockets = [s.name for s in here if socket_path(plan, s)]
    members = [s.name for s in here if (s.exclusive is None or s.default) and s.name not in sockets]
    members += [s.name for s in plan.services if s.config.tier == tier and s.config.builtin is None]
    if tier == front_tier(plan):
        members.append(FRONT)
    return {
        "tier": tier,
        "wants": (
            *(unit_name(plan, name) for name in members),
            *(unit_name(plan, name, "socket") for name in sockets),
        ),
        "boot": plan.tiers[tier].start == "boot" or bool(sockets),
        "boot_target": "default.target" if plan.config.deploy.scope == "user" else "multi-user.target",
    }


def _ordered_after(server: ServerPlan, plan: FleetPlan) -> tuple[str, ...]:
    """Servers that are waited for: the plan's edges, and rivals, which must have stopped.

    One direction is enough (systemd.unit(5), Before=/After=): a stop is ordered before a start either way, and both
    directions would be a cycle. So only rivals that come before `server` in the plan. Who takes turns waits by itself.
    """
    earlier = [s.name for s in plan.servers[: plan.servers.index(server)]] if turn_file(plan, server) is None else []
    return tuple(dict.fromkeys((*server.after, *(n for n in _rivals(server, plan) if n in earlier))))


def _exclusion(server: ServerPlan, plan: FleetPlan) -> dict[str, Any]:
    """How the other members of its exclusive group are kept from running beside `server`."""
    turn = turn_file(plan, server)
    rivals = tuple(unit_name(plan, name) for name in _rivals(server, plan))
    if turn is None:
        return {"conflicts": rivals, "turn": None}
    return {"conflicts": (), "turn": libexec_command(plan, "launch-turn", turn, unit_name(plan, server.name), *rivals)}


def _turn_wait_s(server: ServerPlan, plan: FleetPlan) -> float:
    """How long `server` may have to wait for its turn: each rival loads, and is drained."""
    if turn_file(plan, server) is None:
        return 0
    rivals = _rivals(server, plan)
    drain_s = plan.config.runtime.drain_timeout_s + 5
    return sum(s.start_timeout_s + drain_s for s in plan.servers if s.name in rivals)


def _rivals(server: ServerPlan, plan: FleetPlan) -> tuple[str, ...]:
    """The other members of the server's exclusive group."""
    if server.exclusive is None:
        return ()
    return tuple(s.name for s in plan.servers if s.exclusive == server.exclusive and s.name != server.name)


def libexec_command(plan: FleetPlan, program: str, *words: str) -> str:
    """One of the deployment's own programs with `words`, as a line of a unit."""
    return " ".join((f"{libexec_dir(plan)}/{program}", *quote_command(("", *words))[1:]))


def _on_socket(words: tuple[str, ...], path: str) -> tuple[str, ...]:
    """A server's `words` with `--host` a unix socket (llama-server takes a host that ends in .sock for one)."""
    at = words.index("--host") + 1
    return (*words[:at], path, *words[at + 1 :])


def _quoted(words: tuple[str, ...], *, wrapped: bool) -> tuple[str, ...]:
    """`words` for ExecStart=; behind a wrapper the binary is a word like the others."""
    return quote_command(("", *words))[1:] if wrapped else quote_command(words)


def _needs_resources(server: ServerPlan) -> bool:
    """Whether the server itself sets memory policy, affinity or priority (`--numa`, `--prio`, `--cpu-…`)."""
    return any(word.startswith(("--numa", "--prio", "--cpu-", "-C", "--poll")) for word in server.extra_args)


def _hidden_paths(server: ServerPlan, binary: str) -> tuple[str, ...]:
    """What the sandbox would hide from `server`: its files, and the directory of its binary (libraries lie there)."""
    files = (*server.file_parts, server.model_path, server.draft_path, server.projector_path)
    wanted = [f for f in files if f] + ([binary.rpartition("/")[0]] if binary.startswith("/") else [])
    return tuple(sorted({path for path in wanted if path.startswith(tuple(f"{d}/" for d in HIDDEN))}))


def _bad_paths(server: ServerPlan, paths: tuple[str, ...]) -> Iterator[Finding]:
    """Findings for paths that `BindReadOnlyPaths=` and `LoadCredential=` have no way to write."""
    for path in paths:
        if any(c < " " for c in path):
            message = f"{path!r} has a control character and cannot be bound into a sandbox"
            field = "extra_args" if path == own_key_file(server.extra_args) else "model"
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
