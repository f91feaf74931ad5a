"""The speeds that both design documents state of their servers, and what the plan expects of each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from launcher.compiler import Compilation, compile_fleet
from launcher.plan import touched

EPYC = ("hardware=epyc", "profile=hot_only")
SOVEREIGN = ("hardware=sovereign", "profile=three_tier")


class Row(NamedTuple):
    """One stated speed. `overrides` make the server as it was when it was measured; `why`: what a deviation is due to.

    Rows of one `rate` share a bandwidth; the first of each is what it is worked out from.
    """

    rate: str
    server: str
    stated: tuple[float, float]
    fleet: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    why: str = ""


DRAFTS = "with draft and n-grams; what is accepted is not known beforehand"
SMALL = "few bytes a token: what else a layer costs (96 threads wait for each other) is not modelled"
ROWS = (
    Row("EPYC, RAM", "coder_escalation", (7.28, 7.28), EPYC, (), "calibrates; before draft and n-grams"),
    Row("EPYC, RAM", "frontdoor", (29.3, 29.3), EPYC, ("servers.frontdoor.experts_used=null",), SMALL),
    Row("EPYC, RAM", "frontdoor", (18, 18), EPYC, (), f"{SMALL}; the origin later states 47.1, with drafts"),
    Row("EPYC, RAM", "coder_escalation", (39, 39), EPYC, (), DRAFTS),
    Row("EPYC, RAM", "worker_explore", (44, 44), EPYC, (), DRAFTS),
    Row(
        "EPYC, RAM",
        "architect_general",
        (6.75, 6.75),
        EPYC,
        (),
        "not explained; its memory is on one node, half of the channels",
    ),
    Row("EPYC, RAM", "architect_coding", (10.3, 10.3), EPYC, (), "within what is expected"),
    Row("EPYC, RAM", "ingest_long_context", (6.3, 6.3), EPYC, (), f"{SMALL}; the rest is not explained"),
    Row("EPYC, RAM", "worker_vision", (15, 15), EPYC, (), "not explained; 24 threads may not read as fast as 96"),
    Row("EPYC, RAM", "vision_escalation", (10, 10), EPYC, (), SMALL),
    Row("RTX 4090", "qwen_coder_32b", (20, 40), SOVEREIGN, (), "calibrates, by the middle"),
    Row("RTX 4090", "nemotron_30b", (20, 40), SOVEREIGN, (), "few experts a token: faster than the document's range"),
    Row("RTX 4090", "gpt_oss_20b", (20, 40), SOVEREIGN, (), "few experts a token: faster than the document's range"),
    Row("RTX 4090", "mythomax_13b", (20, 40), SOVEREIGN, (), "half the size of the 32B"),
    Row("6 cores, RAM", "validator", (3, 10), SOVEREIGN, (), "calibrates, by the middle"),
    Row("6 cores, RAM", "router", (3, 10), SOVEREIGN, (), "within what is stated"),
)


@cache
def compiled(overrides: tuple[str, ...]) -> Compilation:
    """One fleet, compiled once."""
    return compile_fleet(list(overrides))


def seconds_by_device(row: Row) -> dict[str, int]:
    """Bytes that a token of the row's server touches, by device."""
    found = compiled((*row.fleet, *row.overrides))
    server = next(s for s in found.plan.servers if s.name == row.server)
    return touched(server).bytes


def table() -> Iterator[tuple[str, str, str, str, str, str]]:
    """Rate, server, stated, predicted, ratio to the stated (its middle), why."""
    rates: dict[str, float] = {}
    for row in ROWS:
        size = sum(seconds_by_device(row).values())
        middle = sum(row.stated) / 2
        rate = rates.setdefault(row.rate, middle * size)
        predicted = rate / size
        low, high = row.stated
        stated = f"{low:g}" if low == high else f"{low:g}-{high:g}"
        yield row.rate, row.server, stated, f"{predicted:.1f}", f"{predicted / middle:.2f} ×", row.why


def markdown() -> str:
    """The table as it stands in docs/performance.md."""
    head = "| rate | server | stated | predicted | predicted / stated | |\n| --- | --- | --- | --- | --- | --- |"
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in table())])


if __name__ == "__main__":
    print(markdown())  # noqa: T201 - for docs/performance.md
