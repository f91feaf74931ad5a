"""Values that are valid alone and not together: one function per rule, all of them in `CONTRADICTIONS`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from launcher.config.nearest import spell
from launcher.errors import Finding, Fix, fault
from launcher.ir.backends import BACKENDS
from launcher.ir.config import FleetConfig


def conflict(key: str, message: str, note: str, *fixes: Fix) -> Finding:
    """A `config/conflict` error."""
    return fault("config/conflict", key, message, note, fixes=fixes)


def exactly_one(key: str, fields: tuple[str, ...], given: list[str]) -> Finding:
    """The finding for none or several of `fields`."""
    listed = " and ".join(given) if given else "none"
    message = f"{key} needs exactly one of {', '.join(fields)}, and has {listed}"
    return conflict(key, message, "write one and remove the others")


def check_exclusive_fields(fleet: FleetConfig) -> Iterator[Finding]:
    """Fields of which at most one, or exactly one, may be written; one of an exclusive group comes up first."""
    for name, server in fleet.servers.items():
        if server.n_ctx and server.n_ctx_per_slot:  # 0 stands for what could not be read
            yield conflict(
                f"servers.{name}.n_ctx_per_slot",
                f"servers.{name} has both n_ctx ({server.n_ctx}) and n_ctx_per_slot ({server.n_ctx_per_slot})",
                "n_ctx is for all slots together, n_ctx_per_slot for each: write one of them",
                Fix(override=f"servers.{name}.n_ctx=null", effect="keeps n_ctx_per_slot"),
                Fix(override=f"servers.{name}.n_ctx_per_slot=null", effect="keeps n_ctx"),
            )
    kinds = ("command", "container", "builtin")
    for name, service in fleet.services.items():
        given = [f for f in kinds if getattr(service, f)]
        if len(given) != 1:
            yield exactly_one(f"services.{name}", kinds, given)
    first: dict[str, str] = {}
    for name, server in fleet.servers.items():
        if server.default and server.exclusive and first.setdefault(server.exclusive, name) != name:
            key = f"servers.{name}.default"
            message = f"{key} is true, and so is that of {first[server.exclusive]}, which takes turns with it"
            fix = Fix(override=f"{key}=false", effect=f"{first[server.exclusive]} comes up first")
            yield conflict(key, message, f"one of the group {server.exclusive} is up first, and comes back", fix)


def check_device_lists(fleet: FleetConfig) -> Iterator[Finding]:
    """A device once, a split that gives something to one of them, and cards that containers have in containers."""
    for name, server in fleet.servers.items():
        key, once = f"servers.{name}.devices", list(dict.fromkeys(server.devices))
        if len(once) < len(server.devices):
            yield conflict(
                key,
                f"{key} names a device twice: {', '.join(server.devices)}",
                "llama-server takes a device once",
                Fix(override=f"{key}={spell(once)}", effect="each of them once"),
            )
        key = f"servers.{name}.tensor_split"
        if server.tensor_split and not any(server.tensor_split):
            yield conflict(
                key,
                f"{key} gives no device a share",
                "the numbers are proportions: [3, 1] puts three quarters on the first device",
                Fix(override=f"{key}=[]", effect="as their memory allows"),
            )
    for name, service in fleet.services.items():
        gpus = fleet.gpus(service.host)
        for device in service.vram_bytes if service.container else ():
            backend = gpus[device].backend if device in gpus else ""
            if backend and not BACKENDS[backend].in_containers:
                key = f"services.{name}.vram_bytes.{device}"
                yield conflict(
                    key,
                    f"services.{name} is a container, and no container has {device} ({backend})",
                    "let it be a `command`, or take the device away",
                )


def check_orchestrated(fleet: FleetConfig) -> Iterator[Finding]:
    """A warm pool's least is not more than its most, a worker is listed once, a rule has words that it looks for."""
    orchestration = fleet.orchestration
    if orchestration is None:
        return
    pool, workers = orchestration.warm_pool, orchestration.workers
    if pool and pool.models_min > pool.models_max:
        key = "orchestration.warm_pool"
        yield conflict(
            f"{key}.models_min",
            f"{key}.models_min is {pool.models_min} and models_max is {pool.models_max}",
            "the pool holds at least models_min files, at most models_max",
            Fix(override=f"{key}.models_max={pool.models_min}", effect=f"keeps {pool.models_min}"),
            Fix(override=f"{key}.models_min={pool.models_max}", effect=f"keeps at most {pool.models_max}"),
        )
    once = list(dict.fromkeys(workers))
    if len(once) < len(workers):
        yield conflict(
            "orchestration.workers",
            f"orchestration.workers names a worker twice: {', '.join(workers)}",
            "the router chooses among workers that are all different",
            Fix(override=f"orchestration.workers={spell(once)}", effect="each of them once"),
        )
    for i, rule in enumerate(orchestration.rules):
        if not rule.words or not all(word.strip() for word in rule.words):
            key = f"orchestration.rules.{i}.words"
            yield conflict(key, f"{key} has no word to look for", "write the words or phrases that decide, or no rule")


def check_files(fleet: FleetConfig) -> Iterator[Finding]:
    """A file that processes open has the same path for all of them, in whatever directory each of them runs."""
    front = fleet.runtime.front
    both, alone = "servers and the front read it", "where it would be depends on who starts the front"
    written = {
        f"hardware.hosts.{name}.api_key_file": (host.api_key_file, both) for name, host in fleet.hardware.hosts.items()
    }
    written["runtime.server_key_file"] = (fleet.runtime.server_key_file, both)
    for name, upstream in fleet.upstreams.items():
        written[f"upstreams.{name}.key_file"] = (upstream.key_file, alone)
        written[f"upstreams.{name}.ca_file"] = (upstream.ca_file, alone)
    for field in ("api_key_file", "tls_cert_file", "tls_key_file", "journal_file"):
        written[f"runtime.front.{field}"] = (getattr(front, field), alone)
    for key, (path, why) in written.items():
        if path is not None and not path.startswith("/"):
            message = f"{key} is {path!r}, and must be an absolute path: {why}"
            yield fault("config/type", key, message)
    if front.tls_key_file is not None and front.tls_cert_file is None:
        key = "runtime.front.tls_key_file"
        yield conflict(key, f"{key} is the key of no certificate", "write runtime.front.tls_cert_file as well")


CONTRADICTIONS: tuple[Callable[[FleetConfig], Iterable[Finding]], ...] = (
    check_exclusive_fields,
    check_device_lists,
    check_orchestrated,
    check_files,
)
"""Every rule, in the order its findings are reported."""
