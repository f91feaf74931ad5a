"""Requests for people to watch: those under way, and the last thousand. No text is kept. Pure."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from time import monotonic
from typing import Any

from launcher.ir.page import Request
from launcher.route.exchange import Exchange

KEPT = 1000
MINUTES = 60
"""Minutes of speeds kept per server."""
_NAME_CHARACTERS = 128
SHOWN = "forward"
"""Purpose of the requests that are shown: those to the models. Pages and control are not, nor the front's own
questions."""


class Requests:
    """The last requests of one front."""

    def __init__(self) -> None:
        self.number = 0
        """Number of the last request."""
        self._ended: deque[tuple[Any, ...]] = deque(maxlen=KEPT)
        self._speeds: dict[str, deque[list[float]]] = {}

    def note(self, exchange: Exchange, status: int, code: str) -> None:
        """Record an ended request; `code`: of an error of the front, or "-". On the hot path: only the necessary."""
        head, target, tokens = exchange.head, exchange.target, exchange.tokens
        if head.purpose != SHOWN:
            return
        self.number += 1
        speed = None
        if target is not None and tokens[1]:
            speed = target.tokens.per_second
            if speed:
                self._note_speed(target.name, speed)
        self._ended.append(
            (
                self.number,
                exchange.id,
                time.time(),
                monotonic() - exchange.began,
                head.grant.name or exchange.client.peer,
                head.path,
                exchange.named[:_NAME_CHARACTERS] or exchange.asked,  # where it named nobody, who was asked
                "" if target is None else target.name,
                status,
                code,
                exchange.first_at - exchange.began,
                tokens,
                speed,
                exchange.decision,
            )
        )

    def _note_speed(self, server: str, speed: float) -> None:
        """Record one answer at `speed` tokens/s."""
        minute = time.time() // 60
        minutes = self._speeds.setdefault(server, deque(maxlen=MINUTES))
        if not minutes or minutes[-1][0] != minute:
            minutes.append([minute, 0.0, 0.0])
        last = minutes[-1]
        last[1] += speed
        last[2] += 1

    def speeds(self) -> dict[str, list[tuple[int, float]]]:
        """Per server: Unix time of each minute of the last hour, and the mean tokens/s of its answers."""
        oldest = time.time() // 60 - MINUTES
        return {
            server: [(int(minute) * 60, round(total / count, 1)) for minute, total, count in minutes if minute > oldest]
            for server, minutes in self._speeds.items()
        }

    def ended(self, after: int = 0) -> list[Request]:
        """Requests that ended since number `after`, oldest first."""
        return [_ended(known) for known in self._ended if known[0] > after]


def live(exchanges: Iterable[Exchange]) -> list[Request]:
    """Requests under way, oldest first."""
    now, wall = monotonic(), time.time()
    found = [
        Request(
            id=exchange.id.decode("ascii"),
            at=wall - (now - exchange.began),
            client=exchange.head.grant.name or exchange.client.peer,
            path=exchange.head.path,
            asked=exchange.named[:_NAME_CHARACTERS] or exchange.asked,
            server="" if exchange.target is None else exchange.target.name,
            state=_state(exchange),
            seconds=now - exchange.began,
            first_s=exchange.first_at - exchange.began if exchange.first_at else None,
            generated_tokens=exchange.parts,
            decision=exchange.decision,
        )
        for exchange in exchanges
        if not exchange.ended and is_shown(exchange)
    ]
    return sorted(found, key=lambda request: request.at)


def is_shown(exchange: Exchange) -> bool:
    """Whether it is a request to the models, not for a page or control."""
    return exchange.head.purpose == SHOWN


def _state(exchange: Exchange) -> str:
    if exchange.started:
        return "streaming"
    return "running" if exchange.is_sent or exchange.orchestration is not None else "waiting"


def _ended(known: tuple[Any, ...]) -> Request:
    number, request_id, ended_at, seconds, client, path, asked, server, status, code, first_s, tokens, speed, why = (
        known
    )
    failed = status >= 400 or code != "-"
    return Request(
        number=number,
        id=request_id.decode("ascii"),
        at=ended_at - seconds,
        client=client,
        path=path,
        asked=asked,
        server=server,
        state="left" if status == 499 else "failed" if failed else "done",
        status=status,
        code="" if code == "-" else code,
        seconds=seconds,
        first_s=first_s if first_s > 0 else None,
        prompt_tokens=tokens[0],
        generated_tokens=tokens[1],
        tokens_per_second=speed,
        decision=why,
    )
