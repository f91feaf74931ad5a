"""What `launch check` looked at, in one line a subject, whether it found anything or not. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.hardware.facts import HostFacts
from launcher.ir.fleet import FleetManifest
from launcher.sizes import gib


def describe_checks(manifest: FleetManifest, facts: HostFacts) -> tuple[tuple[str, str], ...]:
    """(subject, what was found), in the order of the checks. Memory is that of servers which run after a start."""
    return tuple(_lines(manifest, facts))


def _lines(manifest: FleetManifest, facts: HostFacts) -> Iterator[tuple[str, str]]:
    """Each subject in turn."""
    host = facts.host
    boot = [s for s in manifest.servers if s.start == "boot" and (s.exclusive is None or s.default)]
    needs = [m for s in boot for m in s.memory]
    committed = sum(m.committed_bytes for m in needs if m.device == "ram")
    committed += sum(s.ram_bytes for s in manifest.services if s.start == "boot")
    filed = sum(m.file_bytes for m in needs if m.device == "ram")
    ours = f" beside {gib(facts.our_bytes)} that this fleet already holds" if facts.our_bytes else ""
    need_text = f"{gib(committed)} and {gib(filed)} of model files needed"
    yield "memory", f"{need_text}, {gib(host.available_bytes)} of {gib(host.ram_bytes)} available now{ours}"
    for device in (d for d in manifest.devices if d.kind == "gpu"):
        need = sum(m.committed_bytes for m in needs if m.device == device.name)
        card = next((g for g in host.gpus if g.name == device.name), None)
        none = "nobody here can list it" if device.name in facts.unseen_gpus else "no such card"
        there = f"{gib(card.free_bytes)} of {gib(card.vram_bytes)} free on {card.model}" if card else none
        yield device.name, f"{gib(need)} needed, {there}"
    files = {p for s in manifest.servers if s.start != "never" for p in s.files}
    gone = files & set(facts.missing_files)
    yield "files", f"{len(files)} to be read, {f'{len(gone)} cannot be read' if gone else 'all readable'}"
    missing = ", ".join(f"{program} {why}" for program, why in facts.missing_programs.items())
    yield "programs", missing or "every program found"
    locked = sum(m.locked_bytes for s in manifest.servers for m in s.memory)
    limit = "no limit" if host.memlock_bytes is None else f"the limit is {gib(host.memlock_bytes)} a process"
    yield "locks", f"{gib(locked)} to be locked, {limit}" if locked else f"nothing to be locked, {limit}"
    listening = sum(1 for s in manifest.servers if s.start != "never") + len(manifest.services)
    taken = ", ".join(f"{name} {why}" for name, why in facts.taken_ports.items())
    yield "ports", taken or f"free, or ours: {listening} and the front"
    quota = "" if host.cpu_quota is None else f", {host.cpu_quota:g} CPUs' time"
    nodes = max(1, len(host.nodes))
    numa = f"{nodes} NUMA node{'s' * (nodes > 1)}"
    yield "cpus", f"{host.physical_cores} cores, CPUs {host.cpus}, {numa}{quota}"
    for path, free in facts.disk_free.items():
        yield "disk", f"{gib(free)} free for state and logs in {path}"
    for folder, need in facts.models_to_come.items():
        yield "models", f"{gib(need)} not here yet, {gib(facts.models_free[folder])} free in {folder}"
