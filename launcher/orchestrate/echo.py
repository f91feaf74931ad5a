"""Sentences of our own prompts that a worker repeats: they are no part of an answer. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

DONE = "[DONE]"
"""What a worker writes when nothing is left to write."""
_LEAST_WORDS = 4
"""A shorter sentence is not taken for ours: anybody may write it."""
_SENTENCE_END = re.compile(r"(?<=[.:!?])\s+|\n")
_LINE = re.compile(r"[*_`]*\[DONE\][*_`]*\.?", re.IGNORECASE)
_LAST = re.compile(r"(?:\[DONE\]|(?:\A|(?<=[.:!?])\s+|\n)[*_`]*\[DONE\][*_`]*\.?)\Z", re.IGNORECASE)
_ANNOUNCED = r"(?:(?:sure|okay|certainly)\W+)?here(?: is|'s| are) (?:(?:the|your|my) )?(?:\w+ ){0,2}blocks?[:.!]?"


class Echo:
    """Removes the sentences of `prompts` from a worker's text, except those that the client wrote itself."""

    def __init__(self, prompts: Sequence[str], client_text: str) -> None:
        """Letter case and white space do not matter."""
        known = " ".join(client_text.lower().split())
        sentences = {" ".join(s.split()) for prompt in prompts for s in _SENTENCE_END.split(prompt)}
        ours = [s for s in sentences if len(s.split()) >= _LEAST_WORDS and s.lower() not in known]
        bare = {s.rstrip(".:!?") for s in ours}
        written = [r"\s+".join(map(re.escape, s.split())) + "[.:!?]?" for s in sorted(bare, key=len, reverse=True)]
        if "block" not in known:
            written.append(rf"^[ \t]*{_ANNOUNCED}[ \t]*$")
        self._ours = re.compile("|".join(written) or r"(?!)", re.IGNORECASE | re.MULTILINE)

    def strip_from(self, text: str, *, whole: bool = False) -> tuple[str, bool]:
        """The text without our sentences, stripped, and whether it says that it is done.

        `whole`: the worker was not told of `[DONE]`, which is then a word like any other.
        """
        text = text.strip()
        found = list(self._ours.finditer(text))
        is_last = bool(found) and found[-1].end() == len(text) and DONE in found[-1][0].upper()
        if found:
            text = re.sub(r"\n{3,}", "\n\n", self._ours.sub("", text)).strip()
        if whole:
            return text, True
        text, is_done = split_done(text)
        return text, is_last or is_done


def split_done(text: str) -> tuple[str, bool]:
    """A worker's answer up to its `[DONE]`, stripped, and whether it had one.

    A `[DONE]` counts at the end of the text, or on a line of its own outside of code blocks.
    """
    text = text.strip()
    is_code, at = False, 0
    for line in text.splitlines(keepends=True):
        is_code ^= line.lstrip().startswith("```")
        if not is_code and _LINE.fullmatch(line.strip()):
            return text[:at].rstrip(), True
        at += len(line)
    end = _LAST.search(text)
    return (text, False) if end is None else (text[: end.start()].rstrip(), True)
