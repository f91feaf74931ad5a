"""What the orchestration has done, as Prometheus shows it. Pure."""

from __future__ import annotations

from collections import Counter

from launcher.base.prometheus import Histogram, family, histograms, labelled


class Tally:
    """Counters of decisions, blocks, verdicts and generations."""

    def __init__(self) -> None:
        """All zero."""
        self.decisions: Counter[tuple[str, ...]] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.generations: Counter[str] = Counter()
        self.blocks = 0
        self.corrections = 0
        self.routing = Histogram()
        self.judging = Histogram()

    def text(self) -> str:
        """Every family."""
        names = ("source", "domain", "model", "policy")
        decisions = [(labelled(**dict(zip(names, key, strict=True))), n) for key, n in sorted(self.decisions.items())]
        verdicts = [(labelled(verdict=kind), n) for kind, n in sorted(self.verdicts.items())]
        statuses = [(labelled(status=status), n) for status, n in sorted(self.generations.items())]
        lines = (
            *family("launch_auto_decisions_total", "counter", "Requests for auto, by who decided and what.", decisions),
            *family("launch_validation_verdicts_total", "counter", "Verdicts of the validator.", verdicts),
            *family("launch_blocks_committed_total", "counter", "Blocks committed.", [("", self.blocks)]),
            *family("launch_corrections_total", "counter", "Blocks written again.", [("", self.corrections)]),
            *family("launch_generations_total", "counter", "Validated answers, by how they ended.", statuses),
            *histograms("launch_routing_seconds", "Seconds that the router took to decide.", {"": self.routing}),
            *histograms("launch_verdict_seconds", "Seconds until a verdict.", {"": self.judging}),
        )
        return "\n".join(lines) + "\n"
