"""What the page may ask of the runtime. Pure types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from launcher.ir.events import Record
from launcher.ir.live import FleetStatus


class PageHost(Protocol):
    """All methods are called in the runtime's loop."""

    def status(self) -> FleetStatus:
        """Every process now."""

    def events(self, after: int) -> tuple[Record, ...]:
        """The events behind number `after`, oldest first, as far as they are kept."""

    def listen(self, listener: Callable[[Record], None]) -> Callable[[], None]:
        """Call `listener` with every event; returns what ends that."""

    def running(self) -> list[Any]:
        """The requests that run or wait."""

    def ended(self, after: int) -> list[Any]:
        """The requests that ended since number `after`."""

    def speeds(self) -> dict[str, list[tuple[int, float]]]:
        """By server: Unix time of a minute of the last hour, and the mean tokens/s of the answers that ended in it."""

    def cancel(self, request_id: str) -> bool:
        """End a request; False where it does not run."""

    def fleet(self) -> dict[str, Any]:
        """What the manifest says: devices with budgets, servers with plans and groups."""

    async def loads(self) -> Any:
        """What each GPU does now, and what of RAM is free."""

    async def start(self, name: str) -> None:
        """Start a server, as a request would. Raises UnavailableError, KeyError."""

    async def command(self, *words: str) -> dict[str, Any]:
        """Run a command of `launch` and read its JSON: the runtime itself compiles nothing."""

    async def explain(self, code: str) -> dict[str, Any]:
        """`launch explain CODE --json`."""

    async def stop(self, names: tuple[str, ...]) -> None:
        """Stop servers. Raises KeyError."""

    async def restart(self, name: str) -> dict[str, Any]:
        """Restart a server. Raises KeyError."""

    async def change_rung(self, name: str, *, down: bool) -> None:
        """Start a server one rung smaller, or as planned again. Raises UnavailableError, KeyError."""

    def pool(self, verb: str, name: str) -> None:
        """`preload`, `pin`, `unpin` or `evict` a worker's files. Raises KeyError, SuperviseError."""

    async def projects(self) -> list[Any]:
        """Every project of the memory, the one that was used last first. Raises HostError."""

    async def project(self, owner: str, name: str) -> list[dict[str, Any]]:
        """Its last generations, the newest first. Raises HostError."""

    async def generation(self, generation_id: str) -> dict[str, Any] | None:
        """A generation with its blocks, verdicts and notes; None where there is none. Raises HostError."""

    def make_link(self) -> str:
        """A word that opens one session."""

    def enter(self, *, token: str, key: str) -> str | None:
        """A session's cookie line for a word of `make_link`, or for a key that may look after the fleet; else None."""

    def leave(self, cookies: str) -> None:
        """End the session of a Cookie header."""
