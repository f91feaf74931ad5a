"""What gives way when a prompt is too long, and how a worker's answer is read."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.orchestrate.context import (
    OWN_TEXTS,
    fit,
    judge_prompt,
    request_text,
    shorter,
    task_of,
    worker_prompt,
)
from launcher.orchestrate.echo import Echo, split_done
from launcher.orchestrate.settings import BLOCK_PROMPT

sizes = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(0, 50), min_size=1, max_size=4).map(lambda s: sorted(s)[::-1])),
    max_size=8,
)


@given(sizes, st.integers(0, 200))
def test_what_is_chosen_fits_and_gives_no_more_than_needed(pieces: list[tuple[int, list[int]]], room: int) -> None:
    """The sum is within the room; None only where even the shortest are too much; low ranks give way last."""
    chosen = fit(pieces, room)
    if chosen is None:
        assert sum(variants[-1] for _, variants in pieces) > room
        return
    assert sum(variants[i] for i, (_, variants) in zip(chosen, pieces, strict=True)) <= room
    if sum(variants[0] for _, variants in pieces) <= room:
        assert set(chosen) <= {0}
    cut = [rank for i, (rank, _) in zip(chosen, pieces, strict=True) if i]
    for i, (rank, variants) in zip(chosen, pieces, strict=True):
        if cut and rank > min(cut):
            assert i == len(variants) - 1


@given(st.text(), st.booleans())
def test_stand_ins_are_shorter(text: str, end: bool) -> None:
    """From all of a text to nothing, each no longer than the one before but for its mark."""
    variants = shorter(text, end=end)
    assert (variants[0], variants[-1]) == (text, "")
    assert all(len(b) <= max(len(a), 1) for a, b in itertools.pairwise(variants))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f(): ...\n[DONE]", ("def f(): ...", True)),
        ("[done]", ("", True)),
        (" x ", ("x", False)),
        ("[DONE] x", ("[DONE] x", False)),
        ("Paris. [DONE].", ("Paris.", True)),
        ("one\n\n**[DONE]**\n\nand more that nobody asked for", ("one", True)),
        ("The stream ends with [DONE].", ("The stream ends with [DONE].", False)),
        ("```\n[DONE]\n```", ("```\n[DONE]\n```", False)),
    ],
)
def test_the_end_of_an_answer(text: str, expected: tuple[str, bool]) -> None:
    """`[DONE]` counts at the end only."""
    assert split_done(text) == expected


def test_the_workers_prompt() -> None:
    """System texts of ours and the client's in one message, then the request, and what was written."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Write."}]
    task = task_of(messages, ("You code.", "", "Blocks."), whole=False)
    prompt = worker_prompt(task, ("one", "two"))
    found = prompt.messages((0, 0))
    assert [m["role"] for m in found] == ["system", "user", "assistant", "user"]
    assert found[0]["content"] == "You code.\n\nBlocks.\n\nBe brief."
    assert found[2]["content"] == "one\n\ntwo"
    assert prompt.messages((1, 0))[2]["content"] == "two"


def test_the_validators_prompt() -> None:
    """The request, what was accepted, the block, each under its title once."""
    prompt = judge_prompt("Judge.", "Write.", ("one", "two"), "three")
    text = prompt.messages((0, 0, 0, 0))[1]["content"]
    assert text == "The request:\n\nWrite.\n\nAccepted so far:\n\none\n\ntwo\n\nThe block to judge:\n\nthree"
    assert "Accepted" not in prompt.messages((0, 1, 4, 0))[1]["content"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "a"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]}, "a"),
        ({"prompt": "p"}, "p"),
        ({"input": "i"}, "i"),
        ({"input": [{"role": "user", "content": "i"}]}, "i"),
        ({"prompt": [1, 2]}, ""),
        ({"messages": [3, None]}, ""),
        ({}, ""),
    ],
)
def test_what_a_request_asks(body: dict[str, object], text: str) -> None:
    """The last user message, a prompt, an input; junk has no text."""
    assert request_text(body) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "The capital of France is Paris.\n\nWhen nothing is left to write, answer [DONE].",
            ("The capital of France is Paris.", True),
        ),
        ("It is Paris. when nothing is left\nto write, answer [DONE]", ("It is Paris.", True)),
        ("It is Paris.\n\nHere are the next two blocks:", ("It is Paris.", False)),
        ("Sure! Here is the first block:\n\nIt is Paris.", ("It is Paris.", False)),
        ("Write the answer block by block.\n\nIt is Paris.\n\n[DONE]", ("It is Paris.", True)),
        ("The reviewer did not accept this block: I write it again.", ("I write it again.", False)),
        ("Blocks are made of wood. Here are the next two blocks of text.", None),
    ],
)
def test_words_of_our_prompts_are_no_answer(text: str, expected: tuple[str, bool] | None) -> None:
    """A worker that repeats what it was told, in other letters or lines; a text of its own stays as it is."""
    assert Echo((BLOCK_PROMPT, *OWN_TEXTS), "What is the capital of France?").strip_from(text) == (
        expected or (text, False)
    )


def test_what_the_client_said_itself_may_be_answered() -> None:
    """Who asks about our words, about blocks, or for a whole answer gets them back."""
    said = 'What does "When nothing is left to write, answer [DONE]." mean? Explain by blocks.'
    text = "Here are the two blocks:\nWhen nothing is left to write, answer [DONE]. It ends a text."
    assert Echo((BLOCK_PROMPT, *OWN_TEXTS), said).strip_from(text) == (text, False)
    assert Echo((), "x").strip_from("data: [DONE]", whole=True) == ("data: [DONE]", True)
