"""Counters of the orchestration for Prometheus, and events for people.

Events have numbers and names only: no prompt, no answer and no reason of a validator. Those are in the project memory,
for as long as it keeps them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from launcher.base import metrics
from launcher.base.metrics import Histogram, counter, histogram
from launcher.ir.events import Happened
from launcher.orchestrate.cycle import Commit, Escalate
from launcher.orchestrate.decision import Decision
from launcher.orchestrate.verdict import Verdict

_SOURCES = {
    "task_type": "the client named this task type",
    "rule": "a rule has a word of the request",
    "router": "the router says so",
    "front_door": "nobody decided, so that the front door answers",
}
_REFUSED = "the validator refused it"


class Tally:
    """Counters of decisions, blocks, verdicts and generations; `emit` hears of each. Blocks are counted from 0."""

    def __init__(self, emit: Callable[[Happened], None]) -> None:
        self._emit = emit
        self._decisions: Counter[tuple[str, ...]] = Counter()
        self._verdicts: Counter[str] = Counter()
        self._generations: Counter[str] = Counter()
        self._blocks = self._corrections = 0
        self._judging = Histogram()
        self.routing = Histogram()
        """Seconds that the router took."""

    def decided(self, decision: Decision, generation: str, project: str) -> None:
        """Count a decision about `auto`; `escalated`: the router was asked and gave no answer that counts."""
        policy = decision.policy or "none"
        self._decisions[decision.source, decision.domain, decision.model, policy] += 1
        cause = _SOURCES.get(decision.source, decision.source)
        if decision.why:
            cause += f": {decision.why.replace('_', ' ')}"
        about = f" about {decision.domain}" if decision.domain else ""
        details = {
            "generation": generation,
            "project": project,
            "source": decision.source,
            "why": decision.why,
            "escalated": decision.why.startswith("router_"),
            "domain": decision.domain,
            "policy": policy,
            "confidence": decision.confidence,
        }
        message = f"answers a request{about}, validation {policy}"
        self._emit(Happened(kind="decision", name=decision.model, message=message, cause=cause, details=details))

    def escalated(self, server: str, to: str, generation: str, action: Escalate) -> None:
        """Emit that a stronger worker writes from a block on."""
        block, why = action.seq + 1, action.why
        message = f"writes block {block} in place of {server}"
        cause = _REFUSED if why == "validation" else f"{server} refused it"
        details = {"generation": generation, "block": block, "from": server, "why": why, "escalated": True}
        self._emit(Happened(kind="decision", name=to, message=message, cause=cause, details=details))

    def judged(self, verdict: Verdict, generation: str, seq: int, attempt: int) -> None:
        """Count a verdict about block `seq`."""
        self._judging.observe(verdict.seconds)
        self._verdicts[verdict.kind] += 1
        message = f"block {seq + 1}, verdict {attempt}: {verdict.kind} after {verdict.seconds:.2f} s"
        more = {"attempt": attempt, "verdict": verdict.kind, "seconds": verdict.seconds}
        details = {"generation": generation, "block": seq + 1, **more}
        self._emit(Happened(kind="verdict", name=verdict.server, message=message, details=details))

    def corrected(self, model: str, generation: str, seq: int) -> None:
        """Count that a worker has to rewrite block `seq`."""
        self._corrections += 1
        message, details = f"writes block {seq + 1} anew", {"generation": generation, "block": seq + 1}
        self._emit(Happened(kind="correction", name=model, message=message, cause=_REFUSED, details=details))

    def committed(self, server: str, generation: str, block: Commit) -> None:
        """Count a committed block."""
        self._blocks += 1
        size, verdicts = len(block.text), [verdict.kind for verdict in block.verdicts]
        message = f"block {block.seq + 1} is committed: {size} characters"
        details = {"generation": generation, "block": block.seq + 1, "characters": size, "verdicts": verdicts}
        self._emit(Happened(kind="block", name=server, message=message, details=details))

    def ended(self, model: str, generation: str, status: str, blocks: int, code: str) -> None:
        """Count a validated answer that has ended; `code`: why it is not complete."""
        self._generations[status] += 1
        message = f"its answer is {status}: {blocks} block{'s' * (blocks != 1)} committed"
        details = {"generation": generation, "status": status, "blocks": blocks, "code": code}
        cause = code.replace("_", " ")
        self._emit(Happened(kind="generation", name=model, message=message, cause=cause, details=details))

    def text(self) -> str:
        """All metrics as Prometheus text."""
        names = ("source", "domain", "model", "policy")
        decisions = ((dict(zip(names, key, strict=True)), n) for key, n in sorted(self._decisions.items()))
        verdicts = (({"verdict": kind}, n) for kind, n in sorted(self._verdicts.items()))
        statuses = (({"status": status}, n) for status, n in sorted(self._generations.items()))
        return metrics.text(
            counter("launch_auto_decisions_total", "Requests for auto, by who decided and what.", decisions),
            counter("launch_validation_verdicts_total", "Verdicts of the validator.", verdicts),
            counter("launch_blocks_committed_total", "Blocks committed.", [({}, self._blocks)]),
            counter("launch_corrections_total", "Blocks written again.", [({}, self._corrections)]),
            counter("launch_generations_total", "Validated answers, by how they ended.", statuses),
            histogram("launch_routing_seconds", "Seconds that the router took to decide.", [({}, self.routing)]),
            histogram("launch_verdict_seconds", "Seconds until a verdict.", [({}, self._judging)]),
        )
