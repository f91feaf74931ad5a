"""What a worker and the validator are shown, cut to what their slots hold. Pure.

A prompt is made of pieces. Each has a whole text and shorter stand-ins down to nothing, and a rank; where room is
short, pieces of the highest rank give way first, one stand-in at a time. Pieces without a stand-in never give way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from launcher.orchestrate.verdict import SCHEMA, Verdict

SEPARATOR = "\n\n"
"""Between blocks, in answers and prompts."""
_CUT = "…"
NEXT = "Go on with the next block. When nothing is left to write, answer [DONE]."
_EARLIER = "Written earlier in this project:"
_REFUSED = "The reviewer did not accept this {what}:"
_AGAIN = "Write the {what} again, all of it."
OURS = (NEXT, _EARLIER, *(said.format(what=what) for said in (_REFUSED, _AGAIN) for what in ("block", "answer")))
"""What a worker is told beside its prompts."""
VERDICT_TOKENS = 400
"""Tokens that a verdict may take."""
_JUDGE = "You judge blocks of an answer. PASS when nothing is wrong with the block; otherwise FAIL, and say why."
_FORM = 'Answer with JSON: {"status": "PASS" or "FAIL", "reason": "…", "correction": "what to change, empty for PASS"}'
_ONLY_SAMPLING = frozenset(
    {"messages", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "store", "metadata"}
)
"""Keys of a client's request that are not passed to the worker as they are."""

Message = dict[str, Any]


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a prompt: `variants[0]` is all of it, each later one is shorter; the last may be ""."""

    name: str
    variants: tuple[str, ...]
    rank: int


def fit(sizes: Sequence[tuple[int, Sequence[int]]], room: int) -> tuple[int, ...] | None:
    """Which variant of each piece to take, so that their sizes sum to `room` or less; None when nothing does.

    `sizes` are (rank, sizes of the variants). The highest rank gives way first; of one rank, the first piece does.
    """
    chosen = [0] * len(sizes)
    total = sum(variants[0] for _, variants in sizes)
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i][0], i))
    for i in order:
        variants = sizes[i][1]
        while total > room and chosen[i] + 1 < len(variants):
            total += variants[chosen[i] + 1] - variants[chosen[i]]
            chosen[i] += 1
    return tuple(chosen) if total <= room else None


def shorter(text: str, *, end: bool = False) -> tuple[str, ...]:
    """`text` and its first (or last) half, quarter and eighth, then nothing."""
    parts = []
    for share in (2, 4, 8):
        size = len(text) // share
        parts.append(_CUT + text[len(text) - size :] if end else text[:size] + _CUT)
    return (text, *parts, "")


def gone_or_whole(text: str) -> tuple[str, ...]:
    """All of `text`, or nothing."""
    return (text, "")


# --- the worker ---------------------------------------------------------------------------------------------


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker has to do: the client's messages, and what is told it besides."""

    system: str
    """The worker's own prompt, the client's system messages, and how blocks are written."""
    messages: tuple[Message, ...]
    """The client's, without system messages."""
    project: tuple[str, ...] = ()
    """Earlier blocks of the project, oldest first."""
    whole: bool = False
    """The answer is one block (policy `final`)."""


def task_of(messages: Sequence[Message], system: Sequence[str], *, whole: bool) -> Task:
    """The task in a client's `messages`; `system` are our prompts, empty ones are left out."""
    theirs = [text_of(m.get("content")) for m in messages if m.get("role") in ("system", "developer")]
    return Task(
        system=SEPARATOR.join(part for part in (*system, *theirs) if part),
        messages=tuple(m for m in messages if m.get("role") not in ("system", "developer")),
        whole=whole,
    )


def worker_pieces(task: Task, committed: Sequence[str]) -> tuple[Piece, ...]:
    """The parts of a worker's prompt that may give way: the project's earlier blocks, then this answer's own."""
    project = [Piece(name="project", variants=gone_or_whole(text), rank=2) for text in task.project]
    own = [Piece(name="own", variants=gone_or_whole(text), rank=1) for text in committed[:-1]]
    last = [Piece(name="own", variants=shorter(text, end=True), rank=0) for text in committed[-1:]]
    return (*project, *own, *last)


def worker_messages(
    task: Task, pieces: Sequence[Piece], chosen: Sequence[int], rejected: str, verdict: Verdict | None
) -> list[Message]:
    """The worker's prompt with the chosen variant of each piece."""
    shown: dict[str, list[str]] = {"project": [], "own": []}
    for piece, variant in zip(pieces, chosen, strict=True):
        if piece.variants[variant]:
            shown[piece.name].append(piece.variants[variant])
    system = task.system
    if shown["project"]:
        system += f"{SEPARATOR}{_EARLIER}{SEPARATOR}" + SEPARATOR.join(shown["project"])
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages += task.messages
    if shown["own"]:
        messages += [{"role": "assistant", "content": SEPARATOR.join(shown["own"])}, {"role": "user", "content": NEXT}]
    if verdict is not None:
        messages += [{"role": "assistant", "content": rejected}, {"role": "user", "content": _correct(verdict, task)}]
    return messages


def _correct(verdict: Verdict, task: Task) -> str:
    """What a worker is told about a block that was not accepted."""
    change = f"\nWhat to change: {verdict.correction}" if verdict.correction else ""
    what = "answer" if task.whole else "block"
    return f"{_REFUSED.format(what=what)} {verdict.reason}{change}\n{_AGAIN.format(what=what)}"


def sampling(request: dict[str, Any]) -> dict[str, Any]:
    """What of a client's request goes to the worker as it is: temperature, seed and the like."""
    return {key: value for key, value in request.items() if key not in _ONLY_SAMPLING}


# --- the validator ------------------------------------------------------------------------------------------


def judge_pieces(request: str, committed: Sequence[str], block: str) -> tuple[Piece, ...]:
    """The parts of a validator's prompt; the block itself never gives way."""
    own = [Piece(name="own", variants=gone_or_whole(text), rank=2) for text in committed[:-1]]
    last = [Piece(name="own", variants=shorter(text, end=True), rank=1) for text in committed[-1:]]
    asked = Piece(name="request", variants=shorter(request), rank=0)
    return (asked, *own, *last, Piece(name="block", variants=(block,), rank=0))


def judge_messages(system: str, pieces: Sequence[Piece], chosen: Sequence[int]) -> list[Message]:
    """The validator's prompt with the chosen variant of each piece."""
    titles = {"request": "The request:", "own": "Accepted so far:", "block": "The block to judge:"}
    parts: list[str] = []
    before = ""
    for piece, variant in zip(pieces, chosen, strict=True):
        text = piece.variants[variant]
        if text:
            if piece.name != before:
                parts.append(titles[piece.name])
            parts.append(text)
            before = piece.name
    return [
        {"role": "system", "content": f"{(system or _JUDGE).strip()}\n{_FORM}"},
        {"role": "user", "content": SEPARATOR.join(parts)},
    ]


def judge_question(messages: Sequence[Message]) -> dict[str, Any]:
    """The chat request for a verdict."""
    return {
        "messages": list(messages),
        "temperature": 0,
        "max_tokens": VERDICT_TOKENS,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA},
        },
    }


# --- texts --------------------------------------------------------------------------------------------------


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str))


def request_text(body: dict[str, Any]) -> str:
    """What a request asks: the last user message, the prompt, or the input; "" where there is no text."""
    messages = body.get("messages", body.get("input"))
    if isinstance(messages, list):
        users = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"]
        return text_of(users[-1].get("content")) if users else ""
    for key in ("input", "prompt"):
        if isinstance(body.get(key), str):
            text: str = body[key]
            return text
    return ""
