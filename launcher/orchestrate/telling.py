"""What an orchestration does, as events for people: who decided what, verdicts, corrections, committed blocks. Pure.

Figures and names only: no prompt, no answer and no reason of a validator is in an event. Those stand in the project
memory, for as long as it keeps them.
"""

from __future__ import annotations

from launcher.ir.events import Happened
from launcher.orchestrate.cycle import Commit
from launcher.orchestrate.decision import Decision
from launcher.orchestrate.verdict import Verdict

_SOURCES = {
    "task_type": "the client named this task type",
    "rule": "a rule has a word of the request",
    "router": "the router says so",
    "front_door": "nobody decided, so that the front door answers",
}
_REFUSED = "the validator refused it"


def decided(decision: Decision, generation: str, project: str) -> Happened:
    """Who answers a request for `auto`; escalated where the router was asked and gave no answer that counts."""
    cause = _SOURCES.get(decision.source, decision.source)
    if decision.why:
        cause += f": {decision.why.replace('_', ' ')}"
    about = f" about {decision.domain}" if decision.domain else ""
    return Happened(
        kind="decision",
        name=decision.model,
        message=f"answers a request{about}, validation {decision.policy or 'none'}",
        cause=cause,
        details={
            "generation": generation,
            "project": project,
            "source": decision.source,
            "why": decision.why,
            "escalated": decision.why.startswith("router_"),
            "domain": decision.domain,
            "policy": decision.policy or "none",
            "confidence": decision.confidence,
        },
    )


def escalated(server: str, to: str, why: str, generation: str, seq: int) -> Happened:
    """A stronger worker writes from block `seq` on."""
    return Happened(
        kind="decision",
        name=to,
        message=f"writes block {seq + 1} in place of {server}",
        cause=_REFUSED if why == "validation" else f"{server} refused it",
        details={"generation": generation, "block": seq + 1, "from": server, "why": why, "escalated": True},
    )


def judged(verdict: Verdict, generation: str, seq: int, attempt: int) -> Happened:
    """A verdict about block `seq`, counted from 0."""
    message = f"block {seq + 1}, verdict {attempt}: {verdict.kind} after {verdict.seconds:.2f} s"
    more = {"attempt": attempt, "verdict": verdict.kind, "seconds": verdict.seconds}
    details = {"generation": generation, "block": seq + 1, **more}
    return Happened(kind="verdict", name=verdict.server, message=message, details=details)


def corrected(model: str, generation: str, seq: int) -> Happened:
    """A worker is to write a block anew."""
    details = {"generation": generation, "block": seq + 1}
    message = f"writes block {seq + 1} anew"
    return Happened(kind="correction", name=model, message=message, cause=_REFUSED, details=details)


def committed(server: str, generation: str, block: Commit) -> Happened:
    """A block is on disk."""
    size, verdicts = len(block.text), [verdict.kind for verdict in block.verdicts]
    message = f"block {block.seq + 1} is committed: {size} characters"
    details = {"generation": generation, "block": block.seq + 1, "characters": size, "verdicts": verdicts}
    return Happened(kind="block", name=server, message=message, details=details)


def ended(model: str, generation: str, status: str, blocks: int, code: str = "") -> Happened:
    """A validated answer is complete, or is not and why."""
    return Happened(
        kind="generation",
        name=model,
        message=f"its answer is {status}: {blocks} block{'s' * (blocks != 1)} committed",
        cause=code.replace("_", " "),
        details={"generation": generation, "status": status, "blocks": blocks, "code": code},
    )
