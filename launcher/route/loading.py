"""Loads and unloads servers for clients. I/O."""

from __future__ import annotations

import asyncio
import contextlib

from launcher.ir.live import UnavailableError, Upstreams
from launcher.route.exchange import Exchange
from launcher.route.problem import HttpError
from launcher.route.target import SERVING, Target

_LOADS: dict[Target, asyncio.Task[None]] = {}


def load(exchange: Exchange, target: Target) -> None:
    """Begin to start `target`, without waiting for it. Raises HttpError if the caller may not."""
    _check(exchange, target)
    upstreams = exchange.services.upstreams
    if upstreams.state(target.name) not in SERVING and target not in _LOADS:
        loading = _load(upstreams, target.name, target.unit.request_timeout_s)
        _LOADS[target] = asyncio.get_running_loop().create_task(loading)
        _LOADS[target].add_done_callback(lambda _: _LOADS.pop(target))


async def _load(upstreams: Upstreams, name: str, timeout_s: float) -> None:
    with contextlib.suppress(UnavailableError):  # what went wrong stands in its status and log
        (await upstreams.acquire(name, timeout_s)).release(ok=True)


async def unload(exchange: Exchange, target: Target) -> None:
    """Stop `target` until its next request. Raises HttpError."""
    _check(exchange, target)
    try:
        await exchange.services.upstreams.unload(target.name)
    except UnavailableError as error:
        raise unavailable(error) from None


def unavailable(error: UnavailableError) -> HttpError:
    """The error as an answer: 409 where waiting does not help, otherwise 503."""
    status = 409 if error.code in ("always_on", "not_unloaded") else 503
    return HttpError(status, error.code, error.message, retry_after_s=error.retry_after_s)


def _check(exchange: Exchange, target: Target) -> None:
    """Raise HttpError for a caller that may not decide which servers run, or not ask this one."""
    grant = exchange.head.grant
    grant.check_scope("admin")
    grant.check_model(target.name, target.name)
