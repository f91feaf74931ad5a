"""The lease of a fleet: taken when it is free, renewed, given back; and whether this front leads now. I/O."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from typing import Any, Protocol

from launcher.supervise.scheduled.lease import Observation, address_of, claim_of, may_take, observed, taken
from launcher.supervise.scheduled.seen import SchedulerError

_LOG = logging.getLogger("launch.supervise")
_LEADS_FOR = 2 / 3
"""Part of the lease's duration for which its holder acts on the last renewal that it knows of."""
_LOOKS = 7
"""Number of times per duration of the lease that it is read and renewed."""
CALL_SHARE = 2 / 15
"""Part of the lease's duration after which a call is done, or never will be: two of them (a call that the server begins
when we give it up) are less than what is left of a lease after its holder has stopped acting."""


class LeaseStore(Protocol):
    """A store of leases: an API server, or one that answers like it for a lease."""

    async def ask(self, method: str, path: str, *, body: Any = None) -> dict[str, Any]:
        """GET or PUT the lease at `path`; returns it as it is then. A PUT changes only the version that it names.

        Raises SchedulerError, of status 409 if it was changed meanwhile.
        """


class Election:
    """Elects a leading front by a lease. A front acts only while it `leads`, so that two never do.

    The holder counts the lease from before its request, the others from after they saw it, and the others wait half as
    long again.
    """

    def __init__(self, store: LeaseStore, path: str, identity: str, lasts_s: float) -> None:
        """`path`: of the Lease, which must exist. `lasts_s`: its duration. Makes no call yet."""
        self.identity = identity
        self.elected = asyncio.Event()
        self.lost = asyncio.Event()
        """Set when this front led and does no longer."""
        self._store = store
        self._path = path
        self._lasts_s = lasts_s
        self._until = 0.0
        self._sight: Observation | None = None
        self._failure = ""
        self._given_back = False

    @property
    def leads(self) -> bool:
        """Whether this front leads: no other can lead for as long as one call to the API server takes."""
        return asyncio.get_running_loop().time() < self._until

    def leader(self) -> tuple[str, int] | None:
        """Host and port of the leading front, as far as we know; None: nobody, or this front.

        An earlier run of this front had the same address, and leads no more.
        """
        leads = address_of(self._sight.claim.holder) if self._sight is not None else None
        return None if leads == address_of(self.identity) else leads

    async def run(self) -> None:
        """Take the lease as soon as possible and keep it; returns when it is lost or given back."""
        while not self.lost.is_set() and not self._given_back:
            begun = asyncio.get_running_loop().time()
            try:
                await self._look(begun)
                self._failure = ""
            except SchedulerError as error:
                if str(error) != self._failure:
                    self._failure = str(error)
                    _LOG.warning("the lease of this fleet: %s", error)
            if self.elected.is_set() and not self.leads:
                _LOG.warning("this front leads no more: its lease ran out or is another's")
                self.lost.set()
                return
            await asyncio.sleep(max(0.0, begun + self._lasts_s / _LOOKS - asyncio.get_running_loop().time()))

    async def give_back(self) -> None:
        """Stop leading, and free the lease for the next front, if the store can be reached."""
        led, self._until, self._given_back = self.leads, 0.0, True
        if led:
            try:
                lease = await self._store.ask("GET", self._path)
                if claim_of(lease).holder == self.identity:
                    await self._store.ask("PUT", self._path, body=taken(lease, "", 1, _now()))
            except SchedulerError as error:
                _LOG.warning("the lease of this fleet is not given back, and will run out: %s", error)

    async def _look(self, begun: float) -> None:
        """Read the lease; renew it if it is ours, take it if it is free. Raises SchedulerError."""
        lease = await self._store.ask("GET", self._path)
        claim = claim_of(lease)
        self._sight = observed(self._sight, claim, asyncio.get_running_loop().time())
        if claim.holder != self.identity:
            if self.elected.is_set():
                self._until = 0.0
                return
            if not may_take(self._sight, begun, self._lasts_s):
                return
        if self._given_back:
            return
        begun = asyncio.get_running_loop().time()
        try:
            lease = await self._store.ask("PUT", self._path, body=taken(lease, self.identity, self._lasts_s, _now()))
        except SchedulerError as error:
            if error.status == 409:
                return  # somebody was faster: the next look shows who
            raise
        if self._given_back:
            return
        self._sight = observed(self._sight, claim_of(lease), begun)
        self._until = begun + self._lasts_s * _LEADS_FOR
        if not self.elected.is_set():
            _LOG.warning("this front leads the fleet from now on")
            self.elected.set()


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
