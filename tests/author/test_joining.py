"""How one more server joins those that a file has: beside them, in turns, with less, or not."""

from __future__ import annotations

import pytest

from launcher.author import MemoryBudget, Neighbour, ServerCandidate, Way, candidates, room, ways, would_make_room
from tests.author.facts import GIB, on_disk


def needs(candidate: ServerCandidate, tokens: int) -> int:
    """The file and 1 GiB for every 8,192 tokens a slot."""
    return candidate.facts.file.file_bytes + tokens * GIB // 8192


def model(size_gib: float, **architecture: object) -> ServerCandidate:
    """One more model."""
    return candidates([on_disk("/m/new.gguf", size_gib=size_gib, **architecture)])[0]


def there(name: str, size_gib: float, group: str = "", *, shares: bool = True) -> Neighbour:
    """A server of the file."""
    return Neighbour(name=name, bytes=int(size_gib * GIB), group=group, shares=shares and not group)


def first(size_gib: float, *around: Neighbour, cards: int = 0, ram: int = 24, **architecture: object) -> Way:
    """The best way of a model."""
    return next(ways(model(size_gib, **architecture), around, MemoryBudget(cards=cards * GIB, ram=ram * GIB), needs))


CHAT, EMBED = there("chat", 12), there("embed", 1, shares=False)


def said(way: Way) -> tuple[str, str, int, tuple[str, ...]]:
    """What was decided."""
    return way.choice.tier, way.choice.exclusive, way.choice.n_ctx_per_slot, way.drawn_in


@pytest.mark.parametrize(
    ("size", "around", "wanted"),
    [
        (4, (CHAT, EMBED), ("hot", "", 32768, ())),
        (9, (CHAT, EMBED), ("hot", "", 16384, ())),
        (12, (CHAT, EMBED), ("warm", "turns", 32768, ("chat",))),
        (12, (there("a", 12, "night"), there("b", 3, "night"), EMBED), ("warm", "night", 32768, ())),
        (15, (there("a", 10, "night"), there("b", 9), EMBED), ("warm", "night", 32768, ("b",))),
        (15, (there("a", 7), there("b", 6), there("c", 5), EMBED), ("warm", "turns", 16384, ("a", "b"))),
        (22, (CHAT, EMBED), ("warm", "turns", 8192, ("chat",))),
        (22.5, (CHAT, EMBED), ("warm", "turns", 4096, ("chat",))),
        (10.6, (there("chat", 12, shares=False), EMBED), ("hot", "", 2048, ())),
    ],
)
def test_the_best_way(size: float, around: tuple[Neighbour, ...], wanted: object) -> None:
    """In 24 GiB: beside the others, else in turns with as few as need be, the largest first, else with a short context.

    Embedders stay, as does who has `exclusive` written by hand.
    """
    assert said(first(size, *around)) == wanted


def test_the_reason_has_the_figure() -> None:
    """What is left beside the others, which is too little."""
    assert first(12, CHAT, EMBED).choice.why == (
        "16.0 GiB, takes turns: 11.0 GiB are left beside the others; all 32,768 tokens that it was trained for"
    )
    way = first(12, there("a", 12, "night"), EMBED)
    assert (way.turn_mates, way.drawn_in) == (("a",), ())


def test_what_a_card_does_not_hold_is_in_ram() -> None:
    """In turns, so that as many layers as can be are on the card."""
    way = first(30, CHAT, EMBED, cards=24, ram=60)
    assert said(way) == ("warm", "turns", 8192, ("chat",))
    assert "31.0 GiB, some layers in RAM, takes turns" in way.choice.why
    assert said(first(30, EMBED, cards=24, ram=60)) == ("hot", "", 8192, ())


def test_on_demand_is_the_last() -> None:
    """When there is no room at all now, the plan may have it still: the last way; then who would make room is known."""
    around, memory = (there("chat", 12, shares=False), EMBED), MemoryBudget(cards=0, ram=24 * GIB)
    (way,) = ways(model(18), around, memory, needs)
    assert said(way) == ("warm", "", 4096, ())
    assert room(around, memory) == 11 * GIB
    assert would_make_room(around, memory, 18 * GIB) == "chat"
    assert would_make_room(around, memory, 30 * GIB) is None
    (*_, named) = ways(model(18), around, memory, needs, ("chat",))
    assert (named.choice.exclusive, named.drawn_in) == ("turns", ("chat",))


def test_an_embedder_waits_for_nobody_where_it_fits() -> None:
    """Its context is short anyway."""
    embedder = {"arch": "bert", "causal": False, "pooling": "cls", "n_ctx_train": 512}
    assert said(first(8, CHAT, EMBED, **embedder)) == ("hot", "", 512, ())
    assert said(first(11.5, CHAT, EMBED, **embedder)) == ("warm", "turns", 512, ("chat",))
    assert said(first(11.5, CHAT, EMBED, cards=24, **embedder)) == ("hot", "", 512, ())
