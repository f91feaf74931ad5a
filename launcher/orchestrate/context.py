"""Prompts of workers and the validator, cut to the size of their slots. Pure.

A prompt consists of pieces. Each has a whole text, shorter variants down to nothing, and a rank; where room is short,
pieces of the highest rank are shortened first, one variant at a time. Pieces with a single variant are never shortened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
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
OWN_TEXTS = (
    NEXT,
    _EARLIER,
    *(template.format(what=what) for template in (_REFUSED, _AGAIN) for what in ("block", "answer")),
)
"""Our own texts in workers' prompts, besides the system prompts."""
VERDICT_TOKENS = 400
"""Limit of tokens for a verdict."""
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


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt that can be shortened. `compose` makes its messages of (name, text) of the pieces that are left."""

    pieces: tuple[Piece, ...]
    compose: Callable[[Sequence[tuple[str, str]]], list[Message]]

    def messages(self, chosen: Sequence[int]) -> list[Message]:
        """The messages with the chosen variant of each piece."""
        texts = ((piece.name, piece.variants[variant]) for piece, variant in zip(self.pieces, chosen, strict=True))
        return self.compose([(name, text) for name, text in texts if text])


def fit(sizes: Sequence[tuple[int, Sequence[int]]], room: int) -> tuple[int, ...] | None:
    """The variant of each piece, so that their sizes sum to `room` or less; None when that is impossible.

    `sizes` are (rank, sizes of the variants). The highest rank is shortened first; within a rank, the first piece is.
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
    sizes = [len(text) // share for share in (2, 4, 8)]
    parts = [_CUT + text[len(text) - size :] if end else text[:size] + _CUT for size in sizes]
    return (text, *parts, "")


def _committed_pieces(committed: Sequence[str], rank: int) -> tuple[Piece, ...]:
    """Blocks of the answer so far. The earlier ones are dropped first, whole; the last is shortened step by step."""
    earlier = [Piece(name="own", variants=(text, ""), rank=rank + 1) for text in committed[:-1]]
    last = [Piece(name="own", variants=shorter(text, end=True), rank=rank) for text in committed[-1:]]
    return (*earlier, *last)


# --- the worker ---------------------------------------------------------------------------------------------


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's task: the client's messages, and our additions."""

    system: str
    """The worker's own prompt, the client's system messages, and how blocks are written."""
    messages: tuple[Message, ...]
    """The client's messages without system messages."""
    project: tuple[str, ...] = ()
    """Earlier blocks of the project, oldest first."""
    whole: bool = False
    """The answer is one block (policy `final`)."""


def task_of(messages: Sequence[Message], system: Sequence[str], *, whole: bool) -> Task:
    """The task in a client's `messages`; `system` are our prompts, of which empty ones are left out."""
    theirs = [text_of(m.get("content")) for m in messages if m.get("role") in ("system", "developer")]
    return Task(
        system=SEPARATOR.join(part for part in (*system, *theirs) if part),
        messages=tuple(m for m in messages if m.get("role") not in ("system", "developer")),
        whole=whole,
    )


def worker_prompt(task: Task, committed: Sequence[str], rejected: str = "", verdict: Verdict | None = None) -> Prompt:
    """A worker's prompt. The project's earlier blocks are dropped first, then this answer's own.

    `rejected` and `verdict`: the text of this block that was refused, and why.
    """
    project = (Piece(name="project", variants=(text, ""), rank=2) for text in task.project)

    def compose(shown: Sequence[tuple[str, str]]) -> list[Message]:
        earlier, own = (SEPARATOR.join(text for name, text in shown if name == which) for which in ("project", "own"))
        system = f"{task.system}{SEPARATOR}{_EARLIER}{SEPARATOR}{earlier}" if earlier else task.system
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        messages += task.messages
        if own:
            messages += [{"role": "assistant", "content": own}, {"role": "user", "content": NEXT}]
        if verdict is not None:
            messages += [{"role": "assistant", "content": rejected}]
            messages += [{"role": "user", "content": _correct(verdict, task)}]
        return messages

    return Prompt(pieces=(*project, *_committed_pieces(committed, 0)), compose=compose)


def _correct(verdict: Verdict, task: Task) -> str:
    change = f"\nWhat to change: {verdict.correction}" if verdict.correction else ""
    what = "answer" if task.whole else "block"
    return f"{_REFUSED.format(what=what)} {verdict.reason}{change}\n{_AGAIN.format(what=what)}"


def sampling(request: dict[str, Any]) -> dict[str, Any]:
    """The fields of a client's request that go to the worker unchanged: temperature, seed and the like."""
    return {key: value for key, value in request.items() if key not in _ONLY_SAMPLING}


# --- the validator ------------------------------------------------------------------------------------------


def judge_prompt(system: str, request: str, committed: Sequence[str], block: str) -> Prompt:
    """The validator's prompt; the block itself is never shortened."""
    asked = Piece(name="request", variants=shorter(request), rank=0)
    judged = Piece(name="block", variants=(block,), rank=0)
    titles = {"request": "The request:", "own": "Accepted so far:", "block": "The block to judge:"}

    def compose(shown: Sequence[tuple[str, str]]) -> list[Message]:
        parts: list[str] = []
        for name, pieces in groupby(shown, itemgetter(0)):
            parts += [titles[name], *(text for _, text in pieces)]
        return [
            {"role": "system", "content": f"{(system or _JUDGE).strip()}\n{_FORM}"},
            {"role": "user", "content": SEPARATOR.join(parts)},
        ]

    return Prompt(pieces=(asked, *_committed_pieces(committed, 1), judged), compose=compose)


def judge_question(messages: Sequence[Message]) -> dict[str, Any]:
    """The chat request for a verdict."""
    return constrained(messages, "verdict", SCHEMA, VERDICT_TOKENS)


def constrained(messages: Sequence[Message], name: str, schema: dict[str, Any], max_tokens: int) -> dict[str, Any]:
    """A chat request whose answer is JSON by `schema`."""
    form = {"name": name, "strict": True, "schema": schema}
    return {
        "messages": list(messages),
        "temperature": 0,
        "max_tokens": max_tokens,
        "response_format": {"type": "json_schema", "json_schema": form},
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
    """The text of a request: its last user message, prompt or input; "" where there is none."""
    messages = body.get("messages", body.get("input"))
    if isinstance(messages, list):
        users = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"]
        return text_of(users[-1].get("content")) if users else ""
    return next((text for key in ("input", "prompt") if isinstance(text := body.get(key), str)), "")
