"""One question to a running front, as a newcomer would ask it."""

from __future__ import annotations

import shlex
import threading

import msgspec

from launcher.cli.terminal import Terminal

MAX_TOKENS = 80


def body(model: str, text: str) -> dict[str, object]:
    """A chat request."""
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": MAX_TOKENS}


def curl(front: str, model: str, text: str) -> str:
    """A command that anyone can paste."""
    data = shlex.quote(msgspec.json.encode(body(model, text)).decode())
    return f"curl {front}/v1/chat/completions -H 'Content-Type: application/json' -d {data}"


class Question:
    """One question to the front, asked from a thread: the caller's is the runtime's loop, which must serve it."""

    def __init__(self, out: Terminal, front: str, model: str, text: str) -> None:
        """Nothing is asked yet."""
        self._out = out
        self._front = front
        self._model = model
        self._text = text
        self._dropped = threading.Event()

    def ask(self) -> threading.Thread:
        """Begin; the answer is printed as it comes."""
        thread = threading.Thread(target=self._run, daemon=True, name="ask")
        thread.start()
        return thread

    def drop(self) -> None:
        """The fleet stops: nobody waits for the answer any more."""
        self._dropped.set()

    def _run(self) -> None:
        """Print the question, the answer, and how to ask again."""
        import httpx

        out = self._out
        out.line(f"\n{out.style('you', 'bold')}: {self._text}")
        try:
            self._print_answer()
        except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
            if not self._dropped.is_set():
                out.line(f"no answer: {error}")
            return
        if not self._dropped.is_set():
            command = curl(self._front, self._model, "Say hello.")
            out.line(f"\nAsk it yourself, from another terminal:\n\n  {command}\n\nCtrl-C stops everything.")

    def _print_answer(self) -> None:
        """Stream the answer, then say how fast it came. Raises what httpx and a malformed answer raise."""
        import httpx

        out, speed = self._out, None
        url, asked = f"{self._front}/v1/chat/completions", body(self._model, self._text) | {"stream": True}
        out.write(f"{out.style(self._model, 'bold')}: ")
        with httpx.stream("POST", url, json=asked, timeout=120) as reply:
            reply.raise_for_status()
            for line in reply.iter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = msgspec.json.decode(line.removeprefix("data: "))
                speed = chunk.get("timings", {}).get("predicted_per_second", speed)
                for choice in chunk.get("choices", ()):
                    out.write(choice["delta"].get("content") or "")
        out.line(f"  {out.style(f'({speed:.0f} tokens/s)', 'dim')}" if speed else "")
