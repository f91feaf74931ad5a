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


def ask_in_background(out: Terminal, front: str, model: str, text: str) -> threading.Thread:
    """Ask from a thread: the caller's thread is the runtime's loop, which has to serve the request."""
    thread = threading.Thread(target=ask, args=(out, front, model, text), daemon=True, name="ask")
    thread.start()
    return thread


def ask(out: Terminal, front: str, model: str, text: str) -> None:
    """Print the question, the answer, and how to ask again."""
    import httpx

    out.line(f"\n{out.style('you', 'bold')}: {text}")
    try:
        reply = httpx.post(f"{front}/v1/chat/completions", json=body(model, text), timeout=120)
        reply.raise_for_status()
        answer = reply.json()["choices"][0]["message"]["content"].strip()
        speed = reply.json().get("timings", {}).get("predicted_per_second")
    except (httpx.HTTPError, KeyError, IndexError, ValueError) as error:
        out.line(f"no answer: {error}")
        return
    rate = f"  {out.style(f'({speed:.0f} tokens/s)', 'dim')}" if speed else ""
    out.line(f"{out.style(model, 'bold')}: {answer}{rate}\n")
    out.line(
        f"Ask it yourself, from another terminal:\n\n  {curl(front, model, 'Say hello.')}\n\nCtrl-C stops everything."
    )
