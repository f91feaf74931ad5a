"""Write samples as lines of a CSV, and read them. Pure."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable

import msgspec

from launcher.ir.sweep import Sample

HEADER = Sample.__struct_fields__


def row_text(samples: Iterable[Sample], *, header: bool = False) -> str:
    """The CSV lines of `samples`, after the column names if `header`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if header:
        writer.writerow(HEADER)
    writer.writerows([getattr(sample, field) for field in HEADER] for sample in samples)
    return out.getvalue()


def read_rows(text: str) -> tuple[Sample, ...]:
    """The samples of whole batches; lines that a dying process tore, and batches that lack a request, are left out.

    Raises ValueError where it is no CSV, or the first line is not ours.
    """
    whole = text[: text.rfind("\n") + 1]
    try:
        lines = list(csv.reader(io.StringIO(whole)))
    except csv.Error as error:
        raise ValueError(f"it is no CSV: {error}") from None
    if lines and tuple(lines[0]) != HEADER:
        raise ValueError("its first line has not the columns of a sweep")
    batches: dict[tuple[str, str, int], dict[int, Sample]] = defaultdict(dict)
    for line in lines[1:]:
        try:
            sample = msgspec.convert(dict(zip(HEADER, line, strict=True)), Sample, strict=False)
        except ValueError:
            continue
        batches[sample.key, sample.phase, sample.batch][sample.request] = sample
    complete = (batch for batch in batches.values() if len(batch) == next(iter(batch.values())).in_flight)
    return tuple(sample for batch in complete for sample in batch.values())
