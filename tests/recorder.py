"""Which codes were spoken while a test ran: what `tests/cases/elsewhere.toml` says of a test is held against this."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from launcher.errors import Finding, LaunchError
from launcher.supervise.diagnosis import Diagnosis


@contextmanager
def recorded_codes() -> Iterator[set[str]]:
    """The codes of all findings and diagnoses that this process makes, or is told by another, within the block."""
    seen: set[str] = set()

    class RecordedFinding(Finding, frozen=True, kw_only=True):
        """A finding that notes its code when it is made."""

        def __post_init__(self) -> None:
            """Called at the end of every construction."""
            seen.add(self.code)

    class RecordedDiagnosis(Diagnosis, frozen=True, kw_only=True):
        """A diagnosis that does."""

        def __post_init__(self) -> None:
            """Called at the end of every construction."""
            seen.add(self.code)

    def note(error: LaunchError, findings: Iterable[Finding]) -> None:
        """LaunchError.__init__: findings that came from another process were not made here."""
        kept = tuple(findings)
        seen.update(f.code for f in kept)
        plain(error, kept)

    plain = LaunchError.__init__
    _replace(Finding, RecordedFinding)
    _replace(Diagnosis, RecordedDiagnosis)
    LaunchError.__init__ = note  # type: ignore[method-assign,assignment] # put back below
    try:
        yield seen
    finally:
        LaunchError.__init__ = plain  # type: ignore[method-assign] # see above
        _replace(RecordedFinding, Finding)
        _replace(RecordedDiagnosis, Diagnosis)


def _replace(old: type, new: type) -> None:
    """Let every module that has `old` by its own name make `new` instead."""
    name = Finding.__name__ if issubclass(old, Finding) else Diagnosis.__name__
    for module in _modules():
        if module.__name__ != __name__ and vars(module).get(name) is old:
            setattr(module, name, new)


def _modules() -> list[ModuleType | Any]:
    """What is imported now."""
    return [module for module in sys.modules.values() if isinstance(module, ModuleType)]
