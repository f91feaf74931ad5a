"""`launch add`: fit one more server into a fleet file, by the ways that sizes allow, until the plan has no error."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import msgspec

from launcher.author import (
    MemoryBudget,
    Neighbour,
    ServerCandidate,
    ServerChoice,
    Way,
    add_server,
    room,
    share,
    ways,
    would_make_room,
)
from launcher.author.choice import CONTEXTS, tokens_for
from launcher.author.edit import NotEditableError, servers_of
from launcher.author.joining import taken
from launcher.cli.init import CARD_SHARE, RAM_SHARE, memory_needs, try_out
from launcher.cli.onefile import shown_path
from launcher.compiler import Compilation
from launcher.errors import ConfigError, Finding, PlanError, fault
from launcher.files.state import deployment_state_dir
from launcher.ir.host import HostInventory
from launcher.ir.plan import RAM, FleetPlan
from launcher.sizes import gib
from launcher.supervise import offline_status

TRIES = 12
"""Ways that are planned at most."""
OVER_BUDGET = frozenset({"plan/ram-over-budget", "plan/vram-over-budget", "plan/node-over-budget"})
"""Findings that another way may remove; any other one stands whichever way is taken."""
TOGETHER = "they do not fit together"
ASKED = "as --turns-with said"


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet file with one more server, the way that was taken, and the compilation of all of it."""

    text: str
    way: Way
    compiled: Compilation


def add_fitting(
    candidate: ServerCandidate,
    text: str,
    target: Path,
    compiled: Compilation,
    *,
    host: HostInventory,
    lines: Callable[[ServerChoice], Sequence[str]],
    mates: Sequence[str] = (),
) -> Joined:
    """Add a server in the first way that fits. `lines`: makes its entry; `mates`: it takes turns with these.

    Raises PlanError if it fits in no way, ConfigError if the text cannot be edited, LaunchError for anything else that
    is wrong with the longer fleet.
    """
    fleet, plan = compiled.composed.fleet, compiled.plan
    engine = fleet.engines.get("default")
    needs = memory_needs(fleet.hardware, engine.cpu_features if engine else None)
    around = neighbours(compiled, text)
    memory = memory_of(plan, host, around)
    refusal: PlanError | None = None
    spare: Joined | None = None
    for way in islice(ways(candidate, around, memory, needs, mates), TRIES):
        longer = _edited(text, target, way, lines, over=bool(mates))
        try:
            joined = Joined(text=longer, way=way, compiled=try_out(longer, target))
        except PlanError as error:
            if not {f.code for f in error.findings} <= OVER_BUDGET:
                raise
            refusal = error
            continue
        moved = _moved(plan, joined.compiled.plan)
        if moved <= (set() if way.whole else {candidate.name}):
            return joined
        spare = spare or joined  # it fits, and layers that were to be on a card are not
    if spare is not None:
        return spare
    least = needs(candidate, min(tokens_for(candidate, context) for context in CONTEXTS))
    whom = would_make_room(around, memory, least)
    other = next((n for n in around if n.name == whom), None)
    findings = refusal.findings if refusal else ()
    raise PlanError([_no_room(candidate, target, least, room(around, memory), other), *findings])


def _moved(before: FleetPlan, after: FleetPlan) -> set[str]:
    """Servers that have more layers in RAM, beside GPUs, than before."""

    def in_ram(plan: FleetPlan) -> dict[str, int]:
        on_cards = (s for s in plan.servers if s.settings.devices)
        return {s.name: s.model.architecture.n_layer + 1 - s.settings.n_gpu_layers for s in on_cards}

    known = in_ram(before)
    return {name for name, layers in in_ram(after).items() if layers > known.get(name, 0)}


def neighbours(compiled: Compilation, text: str) -> tuple[Neighbour, ...]:
    """The servers of a fleet that one more must fit beside, with their bytes on the GPUs, else in RAM.

    A server that generates text and whose entry says nothing of turns may be made to take them.
    """
    entries = {str(name): entry for name, entry in servers_of(text).items()}

    def shares(name: str) -> bool:
        entry = entries.get(name)
        return isinstance(entry, str) or (isinstance(entry, dict) and "exclusive" not in entry)

    plan = compiled.plan
    cards = any(device.kind == "gpu" for device in plan.devices)
    return tuple(
        Neighbour(
            name=server.name,
            bytes=sum(m.resident_peak_bytes for m in server.memory if (m.device != RAM) == cards),
            group=server.config.exclusive or "",
            shares=not server.settings.embedding and shares(server.name),
        )
        for server in plan.servers
        if server.starts != "never"
    )


def memory_of(plan: FleetPlan, host: HostInventory, around: Sequence[Neighbour]) -> MemoryBudget:
    """Memory that a fleet's servers may use: the plan's budgets, on this machine no more than is free now.

    What its own servers hold while they run counts as free; what services take does not.
    """
    budgets = {kind: sum(d.budget_bytes for d in plan.devices if d.kind == kind) for kind in ("ram", "gpu")}
    peaks = {kind: sum(d.peak_bytes for d in plan.devices if d.kind == kind) for kind in ("ram", "gpu")}
    if plan.config.hardware.name == "auto":
        held = _held(plan)
        budgets["ram"] = min(budgets["ram"], int(host.available_bytes * RAM_SHARE) + held["ram"])
        if host.gpus:  # one that somebody wrote is as free as it is written
            cards = sum(int(gpu.free_bytes * CARD_SHARE) for gpu in host.gpus)
            budgets["gpu"] = min(budgets["gpu"], cards + held["gpu"])
    where = "gpu" if budgets["gpu"] else "ram"
    budgets[where] -= max(0, peaks[where] - taken(around))
    beside = budgets["ram"] - peaks["ram"] if where == "gpu" else budgets["ram"]
    return MemoryBudget(cards=max(0, budgets["gpu"]), ram=max(0, beside))


def _held(plan: FleetPlan) -> dict[str, int]:
    """Bytes that the fleet's running servers hold now: of RAM without pages of files, which count as free."""
    alive = {p.name for p in offline_status(deployment_state_dir(plan.deployment)).processes if p.pid}
    held = {"ram": 0, "gpu": 0}
    for server in plan.servers:
        for memory in server.memory if server.name in alive else ():
            if memory.device == RAM:
                held["ram"] += memory.committed_bytes
            else:
                held["gpu"] += memory.planned_bytes
    return held


def _edited(text: str, target: Path, way: Way, lines: Callable[[ServerChoice], Sequence[str]], *, over: bool) -> str:
    """The text with the new server, and with those that take turns with it. Raises ConfigError."""
    try:
        for name in way.drawn_in:
            text = share(text, name, way.choice.exclusive, ASKED if over else TOGETHER, over=over)
        return add_server(text, lines(way.choice))
    except NotEditableError as error:
        note = f"it does not fit beside the others: write `exclusive: {way.choice.exclusive}` there by hand"
        notes = (note,) if way.drawn_in else ()
        raise ConfigError.of("author/usage", f"{shown_path(target)}: {error}", *notes) from None


def _no_room(candidate: ServerCandidate, target: Path, least: int, free: int, other: Neighbour | None) -> Finding:
    """The finding that it does not fit; `other`: the server that would make room if its entry were changed."""
    notes = [f"{shown_path(target)} stays as it is"]
    if other is not None:
        command = shlex.join(["launch", "add", candidate.path, "--turns-with", other.name])
        instead = f", in the place of its group {other.group}" if other.group else ""
        notes.append(f"it would fit in turns with {other.name}{instead}: {command}")
    return fault(
        "author/does-not-fit",
        "",
        f"{candidate.name} needs {gib(least)} with the shortest context, "
        f"and the fleet can leave it {gib(max(0, free))}",
        *tuple(notes),
    )
