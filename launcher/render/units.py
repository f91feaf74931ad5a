"""systemd units of a fleet: one service per server, one target and one slice per tier; names and folders. Pure.

Facts behind the choices are in the templates beside the lines they explain.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from launcher.base.addresses import SOCKET_END, address_text, is_loopback, is_path
from launcher.errors import Finding, Fix, fault
from launcher.ir.backends import BACKENDS
from launcher.ir.config import RuntimeConfig
from launcher.ir.plan import RAM, FleetPlan, ServerPlan
from launcher.render.command import Command
from launcher.render.passed import files_of, own_key_file, with_credential
from launcher.render.quoting import credential_path, quote_assignments, quote_bind, quote_command
from launcher.sizes import MIB

ProbeKind = Literal["completion", "embedding", "rerank"]

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 # translated, not bound


def probe_kind(server: ServerPlan) -> ProbeKind:
    """The probe request for `server`: rerank by pooling, embedding, else a completion."""
    if server.pooling == "rank":
        return "rerank"
    return "embedding" if server.settings.embedding else "completion"


def reachable_url(host: str, port: int) -> str:
    """URL under which this host reaches a server that listens on `host`."""
    return f"http://{address_text(_ANY_ADDRESS.get(host, host), port)}"


def unit_name(plan: FleetPlan, name: str, kind: str = "service") -> str:
    """`launch-NAME.service`; of a tier `launch-TIER.target` and `launch-TIER.slice`, a child of `launch.slice`.

    A slice's dashes say whose child it is: none is next to another, or at an end.
    """
    whole = f"{plan.config.deploy.unit_prefix}-{name}"
    return f"{re.sub('-+', '-', whole).strip('-') if kind == 'slice' else whole}.{kind}"


def runtime_tier(plan: FleetPlan) -> str | None:
    """The tier in whose slice the runtime is: the first that starts at boot; None where there is none."""
    return next((name for name in sorted(plan.config.tiers) if plan.config.tiers[name].start == "boot"), None)


def runtime_user(plan: FleetPlan) -> str:
    """Whom the runtime runs as: `deploy.user`, else a user of its own, whose name systemd-sysusers takes."""
    name = f"{plan.config.deploy.unit_prefix}-{plan.deployment}".replace(".", "_").lower()
    plain = re.sub(r"^(?![a-z_])|[^a-z0-9_-]", "_", name)
    short = name if plain == name and len(name) <= 31 else f"{plain[:22]}-{zlib.crc32(name.encode()):08x}"
    return plan.config.deploy.user or short


def starts_at_boot(server: ServerPlan) -> bool:
    """Whether a boot starts it without the runtime: not a member of an exclusive group, whose turns are its alone."""
    return server.starts == "boot" and server.config.exclusive is None


def units_of(plan: FleetPlan, server: ServerPlan) -> tuple[str, ...]:
    """The unit of `server` as planned, then those of its fallbacks (`launch-NAME.rung1.service`)."""
    levels = range(1, len(plan.ladders.get(server.name, ())) + 1)
    return (unit_name(plan, server.name), *(unit_name(plan, f"{server.name}.rung{level}") for level in levels))


_OF_THE_MACHINE = re.compile(r"/run/([^/]+)/[^/]+")
_OF_A_USER = re.compile(r"/run/user/\d+/([^/]+)/[^/]+")


def _folder_below_run(path: str, plan: FleetPlan) -> str | None:
    """The name of the folder of `path` below /run, or below a user's own there; None where it is none for a unit.

    systemd gives such a folder to the unit and removes it with all that is in it: it has to be the fleet's own, whose
    name begins with `deploy.unit_prefix`.
    """
    deploy = plan.config.deploy
    found = (_OF_A_USER if deploy.scope == "user" else _OF_THE_MACHINE).fullmatch(path)
    return found[1] if found is not None and found[1].startswith(f"{deploy.unit_prefix}-") else None


def _socket_folder(server: ServerPlan, plan: FleetPlan) -> tuple[str | None, Finding | None]:
    """The folder that the unit of `server` has made for its unix socket, or `render/socket-folder`: why none."""
    deploy, path = plan.config.deploy, server.config.host
    if not is_path(path):
        return None, None
    folder = _folder_below_run(path, plan)
    others = " and ".join(dict.fromkeys(_sharing(server, folder, plan))) if folder else ""
    if folder and not others:
        return folder, None
    base = "/run/user/UID" if deploy.scope == "user" else "/run"
    message = f"no unit makes a folder for {path}: that is {base}/{deploy.unit_prefix}-…/NAME{SOCKET_END}"
    if folder:
        message = f"{base}/{folder} is also the folder of {others}: who stops first removes it"
    key = f"servers.{server.name}.host"
    own = f"{base}/{deploy.unit_prefix}-{server.name}/http{SOCKET_END}"
    fixes = (Fix(override=f"{key}={own}", effect="a folder of its own"),) if deploy.scope == "system" else ()
    note = "`launch up` does without; `launch install` refuses such a unit"
    return None, fault("render/socket-folder", key, message, note, fixes=fixes, severity="warning")


def _sharing(server: ServerPlan, folder: str, plan: FleetPlan) -> Iterator[str]:
    """Servers with a unix socket in `folder` that do not take turns with `server`."""
    for other in plan.servers:
        turns = server.config.exclusive is not None and server.config.exclusive == other.config.exclusive
        there = _folder_below_run(other.config.host, plan) == folder
        if there and other.name != server.name and other.starts != "never" and not turns:
            yield other.name
    if any(_folder_below_run(path, plan) == folder for path in plan.config.runtime.front.listen):
        yield "the front"


EXPOSURE_CPU, EXPOSURE_GPU, EXPOSURE_COMMAND, EXPOSURE_RUNTIME = 1.0, 1.5, 1.5, 2.0
"""What `systemd-analyze security` may say at most of each kind of unit; `launch install` holds units to it."""
EXPOSURE_OPEN = 0.2
"""Added for a server that other machines reach."""
EXPOSURE_ALONE = 0.6
"""Saved by a server without network, which is reached by its unix socket."""

RESTART_S = 3.0
"""Pause before systemd restarts a process: a live runtime, which decides otherwise, is quicker."""

LONGEST_S = 10**9
"""The longest interval a unit gets (32 years): systemd counts microseconds in 64 bits, and refuses more."""

MOST_STARTS = 2**31 - 1
"""The highest StartLimitBurst=: systemd ignores what has more than 32 bits."""

GPU_HOST_BYTES = 2048 * MIB
"""Host memory of a GPU driver, which no plan counts."""

_HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108 # what ProtectHome and PrivateTmp hide
"""Directories that the sandbox hides; files of a server below them are bound in, read-only."""

_GROUPS = ("render", "video")


def unit_values(plan: FleetPlan, unit: str, tier: str, description: str, start_timeout_s: float) -> dict[str, Any]:
    """What the templates of all units need that have a process: where it belongs, and how it is started."""
    return {
        "unit": unit,
        "description": " ".join(description.split()).replace("%", "%%"),
        "target": unit_name(plan, tier, "target"),
        "slice": unit_name(plan, tier, "slice"),
        "oom_score_adjust": plan.config.tiers[tier].oom_score_adjust,
        "start_timeout_s": math.ceil(min(LONGEST_S, start_timeout_s)),
        **start_limit(start_timeout_s, plan.config.runtime),
    }


def service_values(
    server: ServerPlan, plan: FleetPlan, command: Command, *, unit: str
) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """Values of `server.service.j2` for `server`, or a fallback rung of it; `command` is its command."""
    deploy = plan.config.deploy
    hidden = hidden_paths(server, command.words[0])
    keys = own_key_file(server.config.extra_args)
    credential = keys is not None and deploy.scope != "user"
    quoted = quote_command(command.words)
    quoted = with_credential(command.words, quoted) if credential else quoted
    boot = starts_at_boot(server) and unit == unit_name(plan, server.name)
    waited_for = boot and any(server.name in other.after for other in plan.servers if starts_at_boot(other))
    numa = server.config.numa
    folder, homeless = _socket_folder(server, plan)
    values = {
        **unit_values(plan, unit, server.tier, f"llama-server {server.name}: {server.entry}", server.start_timeout_s),
        "after": ("network.target", *(unit_name(plan, n) for n in server.after if boot)),
        "memory_max": memory_max(server),
        "memlock": "infinity" if "mlock" in server.settings.load_mode else "8M",
        "cpus": server.config.cpus,
        "numa_policy": numa.policy if numa else None,
        "numa_mask": (",".join(str(n) for n in numa.nodes) or "all") if numa else None,
        "digest": command.digest,
        "command": " \\\n    ".join(_lines(quoted)),
        "gate": _gate(server) if waited_for else None,
        "boot": boot,
        "credential": credential_path(keys) if credential and keys else None,
        "stop_timeout_s": math.ceil(server.config.stop_grace_s),
        "environment": quote_assignments(command.env),
        **_confined(server, plan, hidden),
        "socket_folder": folder,
    }
    bad = _bad_paths(server, (*hidden, *([keys] if keys else [])))
    lacks = (homeless,) if homeless is not None and unit == unit_name(plan, server.name) else ()
    return values, (*bad, *lacks)


def _confined(server: ServerPlan, plan: FleetPlan, hidden: tuple[str, ...]) -> dict[str, Any]:
    """The sandbox of the unit of `server`. `hidden`: those of its files that the sandbox would hide."""
    config, deploy = server.config, plan.config.deploy
    gpus = [plan.config.hardware.gpus[name] for name in server.settings.devices if name in plan.config.hardware.gpus]
    allow = device_nodes(gpu.backend for gpu in gpus)
    asks = any(gpu.backend == "rpc" for gpu in gpus)
    alone = is_path(config.host) and not asks
    loopback = alone or (is_loopback(config.host) and not asks)
    exposure = (EXPOSURE_GPU if allow else EXPOSURE_CPU) + EXPOSURE_OPEN * (not loopback) - EXPOSURE_ALONE * alone
    # the server itself sets memory policy, affinity or priority
    own_priority = any(word.startswith(("--numa", "--prio", "--cpu-", "-C", "--poll")) for word in config.extra_args)
    # the runtime, where that is another user, may connect to its socket; what it makes is otherwise for its own alone
    others = is_path(config.host) and deploy.scope == "system" and deploy.user is None
    return {
        **sandbox(plan, hidden, (server.port,) if server.port else (), loopback=loopback),
        "exposure": round(exposure, 1),
        "groups": _GROUPS if any(d in ("char-drm", "/dev/kfd") for d in allow) else (),
        "cache_directory": f"{deploy.unit_prefix}-{server.name}" if allow else None,
        "denied_calls": "~@privileged" if allow or own_priority else "~@privileged @resources",
        "alone": alone,
        "device_allow": allow,
        "socket_group": runtime_user(plan) if others else None,
        "umask": "0007" if others else "0077",
    }


def sandbox(plan: FleetPlan, bound: Iterable[str], ports: tuple[int, ...], *, loopback: bool) -> dict[str, Any]:
    """Values of `sandbox.j2` for a process without a GPU; `bound` is hidden from it, and bound in."""
    return {
        "user_scope": plan.config.deploy.scope == "user",
        "user": plan.config.deploy.user,
        "exposure": EXPOSURE_COMMAND,
        "hardening": plan.config.deploy.hardening,
        "sees_others": False,
        "bind_read_only": tuple(quote_bind(path) for path in bound),
        "denied_calls": "~@privileged @resources",
        "ports": ports,
        "loopback": loopback,
        "alone": False,
        "umask": "0077",
        "device_allow": (),
    }


def device_nodes(backends: Iterable[str]) -> tuple[str, ...]:
    """Device nodes that a process opens for GPUs of `backends`."""
    return tuple(dict.fromkeys(node for backend in backends for node in BACKENDS[backend].unit_devices))


def _gate(server: ServerPlan) -> str:
    """A shell's one line that ends when the server has loaded, or is gone: systemd alone would not see the latter."""
    host = server.config.host
    url = f"--unix-socket {host} http://localhost" if is_path(host) else reachable_url(host, server.port)
    url = f"{url}/health"
    script = f"until curl -sf -o /dev/null --noproxy '*' {url}; do kill -0 $$MAINPID || exit 1; sleep 0.2; done"
    return f'/bin/sh -c "{script}"'


def start_limit(start_timeout_s: float, runtime: RuntimeConfig) -> dict[str, Any]:
    """How often a process may fail, within what time (long enough for that many whole starts), and the pause."""
    attempts = min(MOST_STARTS, max(1, runtime.crash_loop_failures))
    starts_s = attempts * (start_timeout_s + runtime.backoff_s) * 1.1
    return {
        "start_limit_burst": attempts,
        # without an exponent, which systemd would not read
        "restart_s": f"{max(runtime.backoff_s, RESTART_S):f}".rstrip("0").rstrip("."),
        "start_limit_interval_s": math.ceil(min(LONGEST_S, max(runtime.crash_loop_window_s, starts_s))),
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
    """Values of the target and the slice of `tier`: a boot starts what is always on, without the runtime."""
    boot = plan.config.tiers[tier].start == "boot"
    members = [s.name for s in plan.servers if s.tier == tier and starts_at_boot(s)]
    members += [s.name for s in plan.services if boot and s.config.tier == tier and s.config.builtin is None]
    return {"tier": tier, "wants": tuple(unit_name(plan, name) for name in members), "boot": boot}


def hidden_paths(server: ServerPlan, binary: str) -> tuple[str, ...]:
    """Paths of `server` that the sandbox would hide: its files, and its binary's directory (libraries)."""
    files = (path for path in files_of(server) if path.startswith(_HIDDEN))
    return tuple(sorted({*files, *hidden_folder(binary)}))


def hidden_folder(program: str) -> tuple[str, ...]:
    """The folder of a program where the sandbox would hide it."""
    return (program.rpartition("/")[0],) if program.startswith(_HIDDEN) else ()


def _bad_paths(server: ServerPlan, paths: tuple[str, ...]) -> Iterator[Finding]:
    """Findings for paths that `BindReadOnlyPaths=` and `LoadCredential=` cannot express."""
    for path in paths:
        if any(c < " " for c in path):
            message = f"{path!r} has a control character and cannot be bound into a sandbox"
            field = "extra_args" if path == own_key_file(server.config.extra_args) else "model"
            yield fault("render/bad-character", f"servers.{server.name}.{field}", message)


def _lines(words: tuple[str, ...]) -> tuple[str, ...]:
    """Quoted `words`, one flag with its values per line."""
    lines: list[str] = []
    for word in words:
        if lines and not word.startswith(("-", '"-')):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return tuple(lines)
