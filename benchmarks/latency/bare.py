"""The same by hand: start the server, look every millisecond whether it is healthy, ask."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from typing import Any

_LOOK_EVERY_S = 0.001


def completion(tokens: int) -> dict[str, Any]:
    """A request for exactly `tokens` tokens."""
    return {"prompt": "Once upon a time", "n_predict": tokens, "ignore_eos": True, "temperature": 0}


def ask_by_hand(argv: tuple[str, ...], port: int, tokens: int) -> float:
    """Seconds from before the spawn to the whole answer; the server is ended afterwards."""
    begun = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until_healthy(port)
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/completion", json.dumps(completion(tokens)), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        body = answer.read()
        seconds = time.perf_counter() - begun
        connection.close()
        if answer.status != http.client.OK:
            raise RuntimeError(f"the server answered {answer.status}: {body[:200]!r}")
        return seconds
    finally:
        process.terminate()
        process.wait()


def until_healthy(port: int) -> float:
    """Look until /health is 200, on one connection; the time (`time.perf_counter`) at which the answer came."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    while True:
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            answer.read()
            if answer.status == http.client.OK:
                connection.close()
                return time.perf_counter()
        except (OSError, http.client.HTTPException):
            connection.close()
        time.sleep(_LOOK_EVERY_S)
