"""Clients of several fronts, in a process of their own: `python -m tests.cluster.asking --front URL… --key KEY`.

A line of JSON a request, when it ended: `front` (which of them), `model`, `said` (the model that answered, a typed
error's code, or `refused`, `broken` and `late` where there was neither), `begun` and `ended` on the monotonic clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import time

import httpx

MODELS = ("alpha", "beta", "gamma")
_PAUSE_S = 0.05
_BODY = {"prompt": "a", "max_tokens": 1}
_NOTICES = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000),
)
"""A client that would otherwise wait for a host that is gone; `broken` ten seconds after its last sign of life."""


async def said_by(url: str, model: str, key: str, limits: httpx.Timeout) -> str:
    """Who answered, or why nobody did. A stranger's answer is `stranger: …`, an error without a type `untyped: …`."""
    headers = {"authorization": f"Bearer {key}"}
    try:
        transport = httpx.AsyncHTTPTransport(socket_options=_NOTICES, trust_env=False)
        async with httpx.AsyncClient(timeout=limits, transport=transport) as client:
            answer = await client.post(f"{url}/v1/completions", json=_BODY | {"model": model}, headers=headers)
    except (httpx.ConnectError, httpx.ConnectTimeout):
        return "refused"
    except httpx.TimeoutException:
        return "late"
    except httpx.TransportError:
        return "broken"
    try:
        found = answer.json()
        if answer.status_code != 200:
            return str(found["error"]["code"])
        served = (found["model"], answer.headers["x-launch-server"])
    except (ValueError, KeyError, TypeError):
        return f"untyped: {answer.status_code} {answer.text[:100]}"
    return model if served == (model, model) else f"stranger: {served}"


async def ask(options: argparse.Namespace, number: int, until: float) -> None:
    """One client: ask, wait for the end, ask again; the last request is waited for, too."""
    draw = random.Random(options.seed * 1000 + number)  # noqa: S311
    limits = httpx.Timeout(options.timeout_s, connect=3)
    while time.monotonic() < until:
        front, model = draw.randrange(len(options.front)), draw.choice(MODELS)
        begun = time.monotonic()
        said = await said_by(options.front[front], model, options.key, limits)
        told = {"front": front, "model": model, "said": said, "begun": begun, "ended": time.monotonic()}
        print(json.dumps(told), flush=True)  # noqa: T201 - what this process is for
        await asyncio.sleep(_PAUSE_S)


async def main() -> None:
    """All clients, for as long as it is said."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--front", action="append", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--timeout-s", type=float, default=90)
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    await asyncio.gather(*(ask(options, number, until) for number in range(options.clients)))


if __name__ == "__main__":
    asyncio.run(main())
