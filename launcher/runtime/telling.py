"""Events of the supervisor in words: what happened, why, and the figures. Pure."""

from __future__ import annotations

from typing import Any

from launcher.base.addresses import port_or_path
from launcher.ir.events import Happened, Kind
from launcher.sizes import gib
from launcher.supervise import events

_WHY_STOPPED = {
    "stop": "it was told to",
    "idle": "nobody asked for it for as long as it may be idle",
    "unloaded": "a client asked for it to go until it is asked for",
    "evicted": "another server needs its memory",
    "exclusive": "another member of its exclusive group comes",
    "changed": "the files say something else now",
    "unhealthy": "it no longer answers",
    "by_hand": "somebody started it beside what runs in its place",
}

_TAIL_LINES = 20
"""Log lines that an event keeps: a thousand events are in memory, and the log itself is on disk."""


_Sentence = tuple[Kind, str, str, dict[str, Any]]
"""Kind, message, cause and details of an event."""
_FleetEvent = (
    events.RuntimeStarted
    | events.StateIgnored
    | events.FleetReady
    | events.FleetFailed
    | events.FleetReloaded
    | events.Stopping
    | events.Stopped
)


def happened(event: events.AnyEvent, *, is_up: bool) -> Happened:
    """`event` in plain words. `is_up`: the fleet is up, so a start has been asked for by a request or a reload."""
    kind, message, cause, details = _sentence(event, is_up=is_up)
    return Happened(kind=kind, name=getattr(event, "name", ""), message=message, cause=cause, details=details)


def _sentence(event: events.AnyEvent, *, is_up: bool) -> _Sentence:  # noqa: C901, PLR0912 - one case an event
    match event:
        case events.ServerStarting():
            cause = "asked for by a request, a reload or a command" if is_up else "it starts with the fleet"
            if event.restart:
                cause = f"its process ended unasked: restart {event.restart}"
            where = {"socket": event.socket} if event.socket else {"port": event.port}
            details = {"pid": event.pid, **where, "restart": event.restart}
            return "starting", f"starts on {port_or_path(event.socket, event.port)}", cause, details
        case events.ServerSlow():
            expected = "" if event.expected_s is None else f"; {event.expected_s:.0f} s were expected"
            details = {"seconds": event.seconds, "expected_s": event.expected_s}
            message = f"still loads after {event.seconds:.0f} s{expected}"
            return "slow", message, "it gets on, so that it is waited for", details
        case events.ServerAdopted():
            message = f"process {event.pid} is taken over" if event.pid else "its pod is taken over"
            cause = "an earlier runtime left it, and it is as compiled"
            if event.by_hand:
                cause = "somebody started its unit" if event.pid else "somebody scaled it"
            return "adopted", message, cause, {"pid": event.pid}
        case events.ServerReady():
            return "ready", f"ready after {event.seconds:.2f} s", "", {"pid": event.pid, "load_s": event.seconds}
        case events.ServerFailed():
            then = "is not tried again" if event.final else f"is tried again in {event.retry_s or 0:.1f} s"
            details = {name: getattr(event, name) for name in ("code", "exit_code", "remedy")}
            return "failed", f"failed; it {then}", event.cause, {**details, "tail": event.tail[-_TAIL_LINES:]}
        case events.RungTaken():
            if event.rung:
                return "degraded", f"is started smaller: {event.rung}", event.why, {"rung": event.rung}
            return "restored", "runs as planned again", event.why, {}
        case events.Swapped():
            message = f"serves in place of {', '.join(event.instead_of)} after {event.seconds:.2f} s"
            details = {"instead_of": event.instead_of, "seconds": event.seconds}
            return "swap", message, "a request asked for it", details
        case events.RoomMade():
            sizes = ", ".join(f"{gib(size)} of {device}" for device, size in event.needs.items() if size)
            cause = f"it needs {sizes}; of those that may go they are missed least"
            details = {"going": event.going, "needs_bytes": event.needs, "weighed": event.weighed}
            return "room", f"{', '.join(event.going)} must go for it", cause, details
        case events.SlotsRestored():
            details = {"slots": event.slots, "tokens": event.tokens}
            return "slots", f"{event.tokens} tokens of {event.slots} saved slots are back", "", details
        case events.ServerStopping():
            kind: Kind = "evicted" if event.why == "evicted" else "stopping"
            return kind, "stops", _WHY_STOPPED.get(event.why, event.why), {"why": event.why}
        case events.ServerStopped():
            return "stopped", "its process is gone", "", {}
        case events.HookDone():
            outcome = "done" if event.error is None else "failed"
            message = f"{outcome} in {event.seconds:.2f} s"
            return "hook", message, event.error or "", {"seconds": event.seconds}
        case _:
            return _fleet_sentence(event)


def _fleet_sentence(event: _FleetEvent) -> _Sentence:
    details: dict[str, Any]
    match event:
        case events.RuntimeStarted():
            details = {"pid": event.pid, "front": event.front, "processes": event.processes}
            return "runtime", f"the runtime of {event.deployment} begins", "", details
        case events.StateIgnored():
            return "state", f"{event.path} was not trusted", event.reason, {}
        case events.FleetReady():
            failed = f", without {', '.join(event.failed)}" if event.failed else ""
            details = {"seconds": event.seconds, "ready": event.ready, "failed": event.failed}
            return "fleet", f"the fleet is ready after {event.seconds:.2f} s{failed}", "", details
        case events.FleetFailed():
            cause = "; ".join(finding.message for finding in event.findings)
            codes = tuple(finding.code for finding in event.findings)
            return "fleet", "the start was given up", cause, {"codes": codes}
        case events.FleetReloaded():
            changed = ("started", "stopped", "restarted")
            parts = [f"{verb} {', '.join(getattr(event, verb))}" for verb in changed if getattr(event, verb)]
            details = {verb: getattr(event, verb) for verb in (*changed, "kept")}
            return "reload", "; ".join(parts) or "no process changed", "", details
        case events.Stopping():
            return "runtime", "the fleet winds down", event.reason, {}
        case events.Stopped():
            return "runtime", "every process is gone; the runtime ends", "", {}
