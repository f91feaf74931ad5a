"""Generate → validate → commit as a pure function: (state, event) → (state, actions).

One action is done at a time, and its outcome is the next event. Every block ends in exactly one of two ways: committed,
after a verdict that passed it, or given up, with the last error. A block gets at most 1 + max_corrections verdicts per
worker, of any kind, and there are at most `escalations` more workers, so every run ends. A worker that took over writes
the rest of the answer.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from launcher.orchestrate.verdict import Verdict

Ends = Literal["", "stop", "length"]
"""OpenAI's finish reason; "": not finished."""
MAX_WRITE_FAILURES = 2
"""How often a worker may fail at one block before the answer is given up."""

_GIVE_UP: dict[str, tuple[int, str]] = {
    "fail": (422, "validation_exhausted"),
    "malformed": (502, "validator_malformed"),
    "contradictory": (502, "validator_contradictory"),
    "timeout": (504, "validator_timeout"),
    "unavailable": (503, "validator_unavailable"),
}
"""HTTP status and code of giving up, by the last verdict's kind."""


class CycleLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds one answer."""

    max_corrections: int
    max_blocks: int
    max_retries: int = 0
    """How often a worker's block is refused (once at least) before the next worker takes over, where there is one."""
    escalations: int = 0
    """How many workers there are beyond the first."""


# --- events -------------------------------------------------------------------------------------------------


class Wrote(msgspec.Struct, frozen=True, kw_only=True):
    """The worker wrote `text`. `ends`: it said that nothing follows ("stop"), or the client's limit is reached."""

    text: str
    ends: Ends = ""


class WriteFailed(msgspec.Struct, frozen=True, kw_only=True):
    """The worker did not answer; `again`: another try may help; `refused`: another worker may accept it."""

    status: int
    code: str
    message: str
    again: bool = True
    refused: bool = False


class Committed(msgspec.Struct, frozen=True, kw_only=True):
    """The block is on disk."""


class CommitFailed(msgspec.Struct, frozen=True, kw_only=True):
    """The block could not be written to disk."""

    message: str


Event = Wrote | WriteFailed | Verdict | Committed | CommitFailed
"""The outcome of an action: of Write, of Judge (a verdict, or why there is none), of Commit."""

# --- actions ------------------------------------------------------------------------------------------------


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """Let the worker write block `seq`; with `rejected`, rewrite it because of `verdict`."""

    seq: int
    rejected: str = ""
    verdict: Verdict | None = None


class Escalate(msgspec.Struct, frozen=True, kw_only=True):
    """Let worker number `rung`, counted from 0, write from block `seq` on."""

    seq: int
    rung: int
    why: Literal["validation", "refused"]


class Judge(msgspec.Struct, frozen=True, kw_only=True):
    """Let the validator judge block `seq`; `attempt` counts from 1."""

    seq: int
    text: str
    attempt: int


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """Save block `seq` with all its verdicts, in one transaction. `ends`: the finish reason, if nothing follows it."""

    seq: int
    text: str
    verdicts: tuple[Verdict, ...]
    ends: Ends


class Deliver(msgspec.Struct, frozen=True, kw_only=True):
    """Send block `seq`, which is committed, to the client."""

    seq: int
    text: str


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """The answer is complete."""

    reason: Ends


class GiveUp(msgspec.Struct, frozen=True, kw_only=True):
    """The answer ends with an error; `verdicts` are those of the block that was not committed."""

    status: int
    code: str
    message: str
    seq: int
    verdicts: tuple[Verdict, ...]


Action = Write | Escalate | Judge | Commit | Deliver | Finish | GiveUp

# --- the machine --------------------------------------------------------------------------------------------


class CycleState(msgspec.Struct, frozen=True, kw_only=True):
    """Where one answer stands. `seq` is the block that is worked on: so many are committed."""

    limits: CycleLimits
    seq: int = 0
    phase: Literal["writing", "judging", "committing", "done"] = "writing"
    before: str = ""
    """The block committed last."""
    text: str = ""
    ends: Ends = ""
    """What its worker says of it, not what the limits do."""
    verdicts: tuple[Verdict, ...] = ()
    write_failures: int = 0
    rung: int = 0
    """Which worker writes."""
    judged_before: int = 0
    """Verdicts of this block about what earlier workers wrote."""

    @property
    def own_verdicts(self) -> tuple[Verdict, ...]:
        """About what the present worker wrote of this block."""
        return self.verdicts[self.judged_before :]


Step = tuple[CycleState, tuple[Action, ...]]
"""The next state, and what to do."""


def begin(limits: CycleLimits, committed: tuple[str, ...] = (), ends: Ends = "") -> Step:
    """The first state and its actions; `committed`: blocks of an earlier run; `ends`: its finish reason, if any."""
    state = CycleState(limits=limits, seq=len(committed), before=committed[-1] if committed else "")
    delivered: tuple[Action, ...] = tuple(Deliver(seq=i, text=text) for i, text in enumerate(committed))
    if ends:
        return _done(state), (*delivered, Finish(reason=ends))
    return state, (*delivered, Write(seq=state.seq))


def step(state: CycleState, event: Event) -> Step:
    """The next state and its actions. An event that the phase does not wait for changes nothing."""
    match state.phase, event:
        case "writing", Wrote():
            return _wrote(state, event)
        case "writing", WriteFailed():
            return _write_failed(state, event)
        case "judging", Verdict():
            return _judged(state, event)
        case "committing", Committed():
            return _committed(state)
        case "committing", CommitFailed():
            message = f"block {state.seq + 1} could not be saved: {event.message}"
            return _given_up(state, 500, "memory_failed", message, verdicts=())
    return state, ()


def _wrote(state: CycleState, event: Wrote) -> Step:
    """A block arrived; a worker that writes nothing new at the beginning of a block has finished."""
    fresh = not state.verdicts
    nothing_new = not event.text or (fresh and event.text == state.before)
    if nothing_new and fresh and state.seq:
        return _done(state), (Finish(reason=event.ends or "stop"),)
    if not event.text:
        message = "the worker wrote nothing"
        failure = WriteFailed(status=502, code="worker_empty", message=message, refused=True)
        return _write_failed(state, failure)
    state = msgspec.structs.replace(state, phase="judging", text=event.text, ends=event.ends)
    return state, (Judge(seq=state.seq, text=event.text, attempt=len(state.verdicts) + 1),)


def _write_failed(state: CycleState, event: WriteFailed) -> Step:
    failures = state.write_failures + 1
    if not event.again or failures > MAX_WRITE_FAILURES:
        if event.refused and state.rung < state.limits.escalations:
            return _escalated(state, "refused")
        message = f"block {state.seq + 1}: {event.message}"
        return _given_up(state, event.status, event.code, message, state.verdicts)
    return msgspec.structs.replace(state, write_failures=failures), (_write(state),)


def _write(state: CycleState) -> Write:
    if not state.verdicts:
        return Write(seq=state.seq)
    return Write(seq=state.seq, rejected=state.text, verdict=state.verdicts[-1])


def _judged(state: CycleState, verdict: Verdict) -> Step:
    """A verdict, usable or not, uses up one attempt."""
    state = msgspec.structs.replace(state, verdicts=(*state.verdicts, verdict))
    if verdict.kind == "pass":
        state = msgspec.structs.replace(state, phase="committing")
        return state, (Commit(seq=state.seq, text=state.text, verdicts=state.verdicts, ends=_ends(state)),)
    tries = len(state.own_verdicts)
    refused = sum(v.kind == "fail" for v in state.own_verdicts)
    is_last = tries > state.limits.max_corrections
    may_escalate = verdict.kind == "fail" and state.rung < state.limits.escalations
    if may_escalate and (is_last or refused >= state.limits.max_retries):
        return _escalated(state, "validation")
    if is_last:
        status, code = _GIVE_UP[verdict.kind]
        tries = len(state.verdicts)
        message = f"block {state.seq + 1} was not accepted in {tries} verdict{'s' * (tries > 1)}: {verdict.reason}"
        return _given_up(state, status, code, message, state.verdicts)
    if verdict.kind == "fail":
        return msgspec.structs.replace(state, phase="writing"), (_write(state),)
    return state, (Judge(seq=state.seq, text=state.text, attempt=len(state.verdicts) + 1),)


def _escalated(state: CycleState, why: Literal["validation", "refused"]) -> Step:
    """Let the next worker write the present block, knowing what was refused of it, and all that follow."""
    state = msgspec.structs.replace(
        state, phase="writing", rung=state.rung + 1, judged_before=len(state.verdicts), write_failures=0
    )
    return state, (Escalate(seq=state.seq, rung=state.rung, why=why), _write(state))


def _committed(state: CycleState) -> Step:
    deliver = Deliver(seq=state.seq, text=state.text)
    seq, ends = state.seq + 1, _ends(state)
    if ends:
        return _done(msgspec.structs.replace(state, seq=seq)), (deliver, Finish(reason=ends))
    fresh = CycleState(limits=state.limits, seq=seq, before=state.text, rung=state.rung)
    return fresh, (deliver, Write(seq=seq))


def _ends(state: CycleState) -> Ends:
    """The finish reason if the present block is the last; "" otherwise."""
    return state.ends or ("length" if state.seq + 1 >= state.limits.max_blocks else "")


def _given_up(state: CycleState, status: int, code: str, message: str, verdicts: tuple[Verdict, ...]) -> Step:
    give_up = GiveUp(status=status, code=code, message=message, seq=state.seq, verdicts=verdicts)
    return _done(state), (give_up,)


def _done(state: CycleState) -> CycleState:
    return msgspec.structs.replace(state, phase="done")
