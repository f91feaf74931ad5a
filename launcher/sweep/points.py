"""The points of a sweep: the product of the fields' values, each with its numbers of requests in flight. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

from launcher.ir.config import ServerConfig
from launcher.ir.sweep import Point, Values

GROUPS = frozenset({"model", "quantization", "tier", "engine"})
"""Server fields that are also config groups: with a single value they are overrides."""


def is_swept(word: str) -> bool:
    """Whether `word` gives a server's field values to be swept (`FIELD=a,b`); else it overrides the whole fleet."""
    key, equals, value = word.partition("=")
    head = key.partition(".")[0]
    if not equals or head not in ServerConfig.__struct_fields__:
        return False
    return head not in GROUPS or len(split_values(value)) > 1


def split_values(text: str) -> tuple[str, ...]:
    """The values in `a,b,c`; commas inside brackets do not separate."""
    found, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            found.append(text[start:at].strip())
            start = at + 1
    return (*found, text[start:].strip())


def swept(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Field → its values, each once. Raises ValueError for a field without a value, or one that is given twice."""
    fields: dict[str, tuple[str, ...]] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key in fields:
            raise ValueError(f"{key} is named twice; all its values in one word: {key}=a,b")
        values = tuple(dict.fromkeys(split_values(value)))
        if not all(values):
            raise ValueError(f"{word}: a value is missing")
        fields[key] = values
    return fields


def setting_words(settings: Mapping[str, str], between: str = " ") -> str:
    """`slots=2 n_ubatch=256`; "" where nothing is set."""
    return between.join(f"{field}={value}" for field, value in settings.items())


def current_of(fields: Collection[str], now: Mapping[str, str]) -> Values:
    """The server's present values of the swept fields."""
    return tuple((field, now[field]) for field in fields)


def grid(
    server: str, fields: Mapping[str, Sequence[str]], now: Mapping[str, str], in_flight: Sequence[int] = ()
) -> tuple[Point, ...]:
    """Every point of `server`, the present settings first.

    `now`: field → present value. `in_flight`: requests at once; by default one, and as many as there are slots (`slots`
    of `now` if they are not swept).
    """
    settings = list(itertools.product(*([(field, value) for value in values] for field, values in fields.items())))
    current = current_of(fields, now)
    ordered = [current, *(s for s in settings if s != current)]
    points: list[Point] = []
    for values in ordered:
        word = dict(values).get("slots", now["slots"])
        slots = max(1, int(word)) if word.isdecimal() and len(word) < 10 else 1  # what is no number, planning refuses
        counts = in_flight or dict.fromkeys((1, slots))
        points += (Point(server=server, values=tuple(values), in_flight=count) for count in counts)
    return tuple(points)
