"""One process to run, server or service, with its limits and fallbacks. Pure."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from launcher.ir.fleet import FleetManifest, RungUnit, ServerUnit, ServiceUnit, SupervisorUnit
from launcher.supervise.lifecycle import Policy


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One process to run: its unit in the manifest, and its time limits."""

    unit: ServerUnit | ServiceUnit
    policy: Policy
    fallbacks: tuple[ProcessSpec, ...] = ()
    """The specs that it is started as after out-of-memory, in order (see `launcher.supervise.fallbacks`)."""
    fallback_label: str = ""
    """For a fallback: what it changes, as text for people."""

    @property
    def name(self) -> str:
        """Name of the unit."""
        return self.unit.name

    def at(self, host: str, port: int) -> ProcessSpec:
        """The same spec at another address."""
        return msgspec.structs.replace(self, unit=msgspec.structs.replace(self.unit, host=host, port=port))


def process_specs(manifest: FleetManifest) -> dict[str, ProcessSpec]:
    """Every process of the manifest by name, in start order: servers, then services."""
    units: tuple[ServerUnit | ServiceUnit, ...] = (*manifest.servers, *manifest.services)
    return {unit.name: _spec(unit, manifest.supervisor) for unit in units}


def boot_names(specs: Collection[ProcessSpec]) -> tuple[str, ...]:
    """Names of what is started at boot, in order; of an exclusive group only its default, otherwise its first.

    RPC peers come first: servers wait for them.
    """
    specs = sorted(specs, key=lambda spec: spec.unit.protocol != "rpc")
    boot: list[str] = []
    groups: dict[str, str] = {}
    for spec in specs:
        if spec.unit.start == "boot" and spec.unit.default and spec.unit.exclusive is not None:
            groups.setdefault(spec.unit.exclusive, spec.name)
    for spec in specs:
        if spec.unit.start != "boot" or spec.unit.builtin:
            continue
        if spec.unit.exclusive is None or groups.setdefault(spec.unit.exclusive, spec.name) == spec.name:
            boot.append(spec.name)
    return tuple(boot)


def _spec(unit: ServerUnit | ServiceUnit, supervisor: SupervisorUnit) -> ProcessSpec:
    policy = Policy(
        start_timeout_s=unit.start_timeout_s,
        stall_timeout_s=unit.stall_timeout_s,
        stop_grace_s=unit.stop_grace_s,
        backoff_s=supervisor.backoff_s,
        backoff_max_s=supervisor.backoff_max_s,
        crash_loop_failures=supervisor.crash_loop_failures,
        crash_loop_window_s=supervisor.crash_loop_window_s,
    )
    fallbacks = tuple(
        ProcessSpec(unit=_fallen_back(unit, rung), policy=policy, fallback_label=rung.label) for rung in unit.rungs
    )
    return ProcessSpec(unit=unit, policy=policy, fallbacks=fallbacks)


def _fallen_back(unit: ServerUnit | ServiceUnit, rung: RungUnit) -> ServerUnit | ServiceUnit:
    smaller = msgspec.structs.asdict(rung)
    del smaller["label"]
    return msgspec.structs.replace(unit, **smaller, rungs=())
