"""Ask a running front one question, as a newcomer would."""

from __future__ import annotations

import shlex
import threading
from pathlib import Path
from typing import Any

import msgspec

from launcher.cli.terminal import Terminal
from launcher.errors import LaunchError

MAX_TOKENS = 80


def body(model: str, text: str) -> dict[str, object]:
    """The body of a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": MAX_TOKENS}


def curl(front: str, model: str, text: str, key_file: str | None = None) -> str:
    """A command to paste into a shell. If a key is required, it names the key's file, never the key itself."""
    data = shlex.quote(msgspec.json.encode(body(model, text)).decode())
    key = f' -H "Authorization: Bearer {_spelled(key_file, model)}"' if key_file else ""
    return f"curl {front}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {data}"


def plain_key(key_file: str, model: str) -> str | None:
    """The first key in the file that is written in plain, not as a digest, and may ask `model`; None: there is none."""
    from launcher.route.keys import read_keys

    try:
        keys = read_keys(key_file)
        lines = Path(key_file).read_text(encoding="utf-8").splitlines()
    except (LaunchError, OSError, UnicodeDecodeError):
        return None
    for word in (line.split()[0] for line in lines if line.strip()):
        # of a comment or a digest the word opens nothing
        grant = keys.grant(word.encode())
        if grant is not None and "infer" in grant.scopes and grant.may_ask(model, model):
            return word
    return None


def _spelled(key_file: str, model: str) -> str:
    """The shell's word for the key: the first line of its file if that is only the key, else `$YOUR_KEY`."""
    key, path = plain_key(key_file, model), Path(key_file).absolute()
    try:
        alone = key is not None and path.read_bytes().partition(b"\n")[0] == key.encode()
    except OSError:
        alone = False
    return f"$(head -n1 {shlex.quote(str(path))})" if alone else "$YOUR_KEY"


class _AnswerDelta(msgspec.Struct):
    content: str | None = None


class _AnswerChoice(msgspec.Struct):
    delta: _AnswerDelta


class _AnswerChunk(msgspec.Struct):
    """One event of a streamed answer; `error`: why it ends early."""

    choices: list[_AnswerChoice] = []
    timings: dict[str, float] = {}
    error: dict[str, Any] | None = None


class AskThread(threading.Thread):
    """One question to the front, asked from a thread: the caller's is the runtime's loop, which must serve it.

    The answer is printed as it comes.
    """

    def __init__(self, out: Terminal, front: str, model: str, text: str, *, key_file: str | None, ends: str) -> None:
        """Nothing is asked yet. `key_file`: of the keys that the front asks for; `ends`: how the fleet is stopped."""
        super().__init__(daemon=True, name="ask")
        self._out, self._front, self._model, self._text = out, front, model, text
        self._key_file, self._ends = key_file, ends
        self.dropped = False
        """Set when the fleet stops: nobody waits for the answer any more."""

    def run(self) -> None:
        """Print the question, the answer, and how to ask again."""
        import httpx

        out = self._out
        out.line(f"\n{out.style('you', 'bold')}: {self._text}")
        key = plain_key(self._key_file, self._model) if self._key_file else None
        try:
            if self._key_file and key is None:
                out.line(f"not asked: no key stands in {self._key_file} as it is that may ask {self._model}")
            else:
                self._print_answer({"Authorization": f"Bearer {key}"} if key else {})
        except (httpx.HTTPError, ValueError) as error:
            if not self.dropped:
                out.line(f"no answer: {error}")
            return
        if not self.dropped:
            command = curl(self._front, self._model, "Say hello.", self._key_file)
            out.line(f"\nAsk it yourself, from another terminal:\n\n  {command}\n\n{self._ends} stops everything.")

    def _print_answer(self, headers: dict[str, str]) -> None:
        """Stream the answer, then say how fast it came. Raises what httpx and a malformed answer raise."""
        import httpx

        out, speed = self._out, None
        url, asked = f"{self._front}/v1/chat/completions", body(self._model, self._text) | {"stream": True}
        out.write(f"{out.style(self._model, 'bold')}: ")
        with httpx.stream("POST", url, json=asked, headers=headers, timeout=120, trust_env=False) as reply:
            reply.raise_for_status()
            for line in reply.iter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = msgspec.json.decode(line.removeprefix("data: "), type=_AnswerChunk)
                if chunk.error is not None:
                    raise ValueError(chunk.error.get("message", chunk.error))
                speed = chunk.timings.get("predicted_per_second", speed)
                for choice in chunk.choices:
                    out.write("".join(c if c.isprintable() or c in "\n\t" else "�" for c in choice.delta.content or ""))
        out.line(f"  {out.style(f'({speed:.0f} tokens/s)', 'dim')}" if speed else "")
