"""Who has to go for whom, decided without a process: eviction, turns, idleness."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from launcher.ir.fleet import DeviceNeed
from launcher.supervise.lifecycle import Life
from launcher.supervise.scheduler import Tenant, evict_for, rivals
from launcher.supervise.spec import ProcessSpec, process_specs
from tests.supervise.conftest import fake, manifest

READY = Life(state="ready", wanted=True, alive=True, proven=True)
STOPPED = Life()


def spec(name: str, size: int = 400, **changes: Any) -> ProcessSpec:
    """A server on demand that takes `size` bytes of RAM."""
    memory = (DeviceNeed(device="ram", committed_bytes=size, peak_bytes=size, file_bytes=0),)
    changes.setdefault("start", "demand")
    return process_specs(manifest(fake(name, 1, memory=memory, **changes)))[name]


def tenant(name: str, life: Life = READY, idle_s: float = 0.0, in_flight: int = 0, **changes: Any) -> Tenant:
    """A server of 400 bytes, in `life`."""
    return Tenant(spec=spec(name, **changes), life=life, idle_s=idle_s, in_flight=in_flight)


@pytest.mark.parametrize(
    ("others", "free", "goes"),
    [
        ((tenant("a", idle_s=9), tenant("b", idle_s=1)), 1000, ("a",)),
        ((tenant("a", idle_s=9, in_flight=1), tenant("b", idle_s=1)), 1000, ("b",)),
        ((tenant("a", in_flight=1), tenant("b", in_flight=1)), 1000, None),
        ((tenant("a", STOPPED), tenant("b")), 1000, ()),
        ((tenant("a", STOPPED), tenant("b")), 100, ("b",)),
        ((tenant("a", start="boot"), tenant("b", idle_s=1)), 1000, ("b",)),
        ((tenant("a", STOPPED, start="boot"), tenant("b")), 1000, ("b",)),
        ((tenant("a", msgspec.structs.replace(STOPPED, held=True), start="boot"), tenant("b")), 1000, ()),
        ((tenant("a", msgspec.structs.replace(STOPPED, returning=True)), tenant("b")), 1000, ("b",)),
    ],
)
def test_room_is_made_by_who_may_go(others: tuple[Tenant, ...], free: int, goes: tuple[str, ...] | None) -> None:
    """1000 bytes for all; who is busy, always on or on its way back stays; the system's word counts too."""
    assert evict_for(spec("new"), others, {"ram": 1000}, {"ram": free}) == goes


def test_what_can_never_fit_is_told_at_once() -> None:
    """Beside what is always on there is no room, whoever goes."""
    with pytest.raises(LookupError):
        evict_for(spec("new"), (tenant("hot", start="boot"),), {"ram": 700}, {})


def test_a_turn_is_taken_from_who_runs_or_will_run() -> None:
    """Of its own group alone, and not from itself."""
    backoff = Life(state="backoff", wanted=True)
    everybody = (
        tenant("me", exclusive="g"),
        tenant("runs", exclusive="g"),
        tenant("comes", backoff, exclusive="g"),
        tenant("rests", STOPPED, exclusive="g"),
        tenant("elsewhere", exclusive="h"),
    )
    assert rivals(everybody[0].spec, everybody) == ("runs", "comes")
    assert rivals(spec("alone"), everybody) == ()


@pytest.mark.parametrize(
    ("life", "idle_s", "in_flight", "goes"),
    [(READY, 5, 0, True), (READY, 4, 0, False), (READY, 5, 1, False), (STOPPED, 5, 0, False)],
)
def test_who_is_idle_too_long_goes(life: Life, idle_s: float, in_flight: int, goes: bool) -> None:
    """On demand only, at its limit, with nothing in flight; one without a limit, or that starts at boot, stays."""
    assert tenant("w", life, idle_s, in_flight, idle_timeout_s=5).idle_too_long == goes
    assert not tenant("w", life, idle_s, in_flight, idle_timeout_s=0).idle_too_long
    assert not tenant("w", life, idle_s, in_flight, idle_timeout_s=5, start="boot").idle_too_long
