"""What the supervisor tells, as events for people: what happened, why, with which figures. Pure."""

from __future__ import annotations

from launcher.base.addresses import place
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
"""Of a log that an event keeps: a thousand events are in memory, and the log itself is on disk."""


def happened(event: events.AnyEvent, *, is_up: bool) -> Happened:  # noqa: C901, PLR0912 - one case an event
    """`event` in plain words. `is_up`: the fleet is up, so that a request or a reload asked for a start."""
    match event:
        case events.RuntimeStarted():
            details = {"pid": event.pid, "front": event.front, "processes": event.processes}
            return Happened(kind="runtime", message=f"the runtime of {event.deployment} begins", details=details)
        case events.ServerStarting():
            cause = "a request, or a reload" if is_up else "it starts with the fleet"
            if event.restart:
                cause = f"its process ended unasked: restart {event.restart}"
            where = {"socket": event.socket} if event.socket else {"port": event.port}
            details = {"pid": event.pid, **where, "restart": event.restart}
            message = f"starts on {place(event.socket, event.port)}"
            return Happened(kind="starting", name=event.name, message=message, cause=cause, details=details)
        case events.ServerSlow():
            expected = "" if event.expected_s is None else f"; {event.expected_s:.0f} s were expected"
            return Happened(
                kind="slow",
                name=event.name,
                message=f"still loads after {event.seconds:.0f} s{expected}",
                cause="it gets on, so that it is waited for",
                details={"seconds": event.seconds, "expected_s": event.expected_s},
            )
        case events.ServerAdopted():
            left = "an earlier runtime left it, and it is as compiled"
            return Happened(
                kind="adopted",
                name=event.name,
                message=f"process {event.pid} is taken over" if event.pid else "its pod is taken over",
                cause=("somebody started its unit" if event.pid else "somebody scaled it") if event.by_hand else left,
                details={"pid": event.pid},
            )
        case events.ServerReady():
            return Happened(
                kind="ready",
                name=event.name,
                message=f"ready after {event.seconds:.2f} s",
                details={"pid": event.pid, "load_s": event.seconds},
            )
        case events.ServerFailed():
            then = "is not tried again" if event.final else f"is tried again in {event.retry_s or 0:.1f} s"
            tail = event.tail[-_TAIL_LINES:]
            details = {"code": event.code, "exit_code": event.exit_code, "remedy": event.remedy, "tail": tail}
            return Happened(
                kind="failed", name=event.name, message=f"failed; it {then}", cause=event.cause, details=details
            )
        case events.RungTaken():
            if not event.rung:
                return Happened(kind="restored", name=event.name, message="runs as planned again", cause=event.why)
            return Happened(
                kind="degraded",
                name=event.name,
                message=f"is started smaller: {event.rung}",
                cause=event.why,
                details={"rung": event.rung},
            )
        case events.Swapped():
            return Happened(
                kind="swap",
                name=event.name,
                message=f"serves in place of {', '.join(event.instead_of)} after {event.seconds:.2f} s",
                cause="a request asked for it",
                details={"instead_of": event.instead_of, "seconds": event.seconds},
            )
        case events.RoomMade():
            sizes = ", ".join(f"{gib(size)} of {device}" for device, size in event.needs.items() if size)
            return Happened(
                kind="room",
                name=event.name,
                message=f"{', '.join(event.going)} must go for it",
                cause=f"it needs {sizes}; of those that may go they are missed least",
                details={"going": event.going, "needs_bytes": event.needs, "weighed": event.weighed},
            )
        case events.SlotsRestored():
            return Happened(
                kind="slots",
                name=event.name,
                message=f"{event.tokens} tokens of {event.slots} saved slots are back",
                details={"slots": event.slots, "tokens": event.tokens},
            )
        case events.ServerStopping():
            kind: Kind = "evicted" if event.why == "evicted" else "stopping"
            cause = _WHY_STOPPED.get(event.why, event.why)
            return Happened(kind=kind, name=event.name, message="stops", cause=cause, details={"why": event.why})
        case events.ServerStopped():
            return Happened(kind="stopped", name=event.name, message="its process is gone")
        case events.HookDone():
            outcome = "done" if event.error is None else "failed"
            return Happened(
                kind="hook",
                name=event.name,
                message=f"{outcome} in {event.seconds:.2f} s",
                cause=event.error or "",
                details={"seconds": event.seconds},
            )
        case events.StateIgnored():
            return Happened(kind="state", message=f"{event.path} was not trusted", cause=event.reason)
        case events.FleetReady():
            failed = f", without {', '.join(event.failed)}" if event.failed else ""
            return Happened(
                kind="fleet",
                message=f"the fleet is ready after {event.seconds:.2f} s{failed}",
                details={"seconds": event.seconds, "ready": event.ready, "failed": event.failed},
            )
        case events.FleetFailed():
            cause = "; ".join(finding.message for finding in event.findings)
            codes = tuple(finding.code for finding in event.findings)
            return Happened(kind="fleet", message="the start was given up", cause=cause, details={"codes": codes})
        case events.FleetReloaded():
            changed = ("started", "stopped", "restarted")
            parts = [f"{verb} {', '.join(getattr(event, verb))}" for verb in changed if getattr(event, verb)]
            details = {verb: getattr(event, verb) for verb in (*changed, "kept")}
            return Happened(kind="reload", message="; ".join(parts) or "nothing but routes", details=details)
        case events.Stopping():
            return Happened(kind="runtime", message="the fleet winds down", cause=event.reason)
        case events.Stopped():
            return Happened(kind="runtime", message="every process is gone; the runtime ends")
