"""Timeouts inside one another: the inner one must be able to fire first. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.errors import Finding, Fix
from launcher.ir.plan import ServerPlan
from launcher.plan.checks.planning import Planning, finding, set_field
from launcher.sizes import gib


def check_timeouts(planning: Planning) -> Iterator[Finding]:
    """`plan/timeout-order`: an inner timeout that cannot fire before the outer one."""
    for server in planning.running:
        yield from _of_start(server)
        yield from _of_first_answer(planning, server)
    yield from _of_connecting(planning)
    yield from _of_router(planning)


def _of_start(server: ServerPlan) -> Iterator[Finding]:
    """A stall is noticed before the start is given up."""
    stall, start = server.config.stall_timeout_s, server.start_timeout_s
    if stall > start > 0:
        message = f"a start is called stalled after {stall:g} s without progress, but it is given up after {start:g} s"
        fixes = (set_field(server, "stall_timeout_s", f"{start:g}"),)
        yield finding("warning", "plan/timeout-order", f"{server.key}.stall_timeout_s", message, fixes=fixes)
    load_s = server.load_s
    if load_s is not None and load_s > start:
        size = server.model.file_bytes
        speed = gib(int(size / load_s))
        message = f"{gib(size)} are read in {load_s:.0f} s at {speed} a second, the start is late after {start:g} s"
        longer = (
            set_field(server, "start_timeout_s", f"{2 * load_s + 60:.0f}"),
            set_field(server, "start_timeout_s", "null", "derives it from the size"),
        )
        yield finding("warning", "plan/start-too-short", f"{server.key}.start_timeout_s", message, fixes=longer)


def answer_timeout(planning: Planning, server: ServerPlan) -> tuple[str, float]:
    """The shortest time that a request to `server` is given, and the key that says so."""
    given = planning.fleet.routing.timeouts_s
    named = {f"routing.timeouts_s.{n}": given[n] for n in (server.name, *server.config.roles) if n in given}
    own = {f"{server.key}.request_timeout_s": server.config.request_timeout_s}
    return min((named or own).items(), key=lambda item: item[1])


def _of_first_answer(planning: Planning, server: ServerPlan) -> Iterator[Finding]:
    """A request that starts a server waits for the start, too."""
    key, answer = answer_timeout(planning, server)
    start = server.start_timeout_s
    if server.initial or answer >= start:
        return
    message = (
        f"{server.name} is started by a request, which is given up after {answer:g} s, "
        f"but its start may take {start:g} s: the first caller may get an error while the server still loads"
    )
    fixes = (Fix(override=f"{key}={start:g}", effect="the first caller waits for the start"),)
    yield finding("note", "plan/timeout-order", key, message, fixes=fixes)


def _of_connecting(planning: Planning) -> Iterator[Finding]:
    """Connecting to a server is given up before its answer is."""
    connect = planning.fleet.runtime.front.connect_timeout_s
    answers = [(answer_timeout(planning, s)[1], s.name) for s in planning.running]
    shortest, name = min(answers, default=(connect + 1, ""))
    if connect >= shortest:
        message = f"connecting may take {connect:g} s, but a request to {name} is given up after {shortest:g} s"
        yield finding("warning", "plan/timeout-order", "runtime.front.connect_timeout_s", message)


def _of_router(planning: Planning) -> Iterator[Finding]:
    """The orchestration gives up on its router before the router's server gives up on the request."""
    orchestration = planning.fleet.orchestration
    router = next((s for s in planning.servers if orchestration and s.name == orchestration.router), None)
    if orchestration and router:
        outer = planning.fleet.routing.timeouts_s.get(router.name, router.config.request_timeout_s)
        if orchestration.router_timeout_s >= outer:
            message = f"the router is given {orchestration.router_timeout_s:g} s, its server answers within {outer:g} s"
            yield finding("warning", "plan/timeout-order", "orchestration.router_timeout_s", message)
