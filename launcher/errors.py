"""Findings (a user's mistakes as values) and the error tree with its exit codes. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

import msgspec

Severity = Literal["error", "warning", "note"]


THIS_MACHINE = "this machine"
"""`Location.file` of a value that was detected on this machine, not written in a file."""


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """Where a value was written. `file` is a path, `<command line>` or `this machine`; line and column count from 1.

    For `<command line>`, `line` is the position of the override.
    """

    file: str
    line: int
    column: int = 1

    def __str__(self) -> str:
        """`file:line:column`, as compilers print it; a detected value has no line."""
        return self.file if self.file == THIS_MACHINE else f"{self.file}:{self.line}:{self.column}"


class Fix(msgspec.Struct, frozen=True, kw_only=True):
    """An override that removes the finding, and what it changes (`saves 61.2 GiB`)."""

    override: str
    effect: str = ""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong, or worth knowing, about an input.

    `code` is stable (`plan/ram-over-budget`); `key` is the dotted config key it is about, from which the
    compiler derives `location`; `message` names the numbers; `fixes` are overrides that remove it.
    """

    code: str
    severity: Severity
    key: str
    message: str
    notes: tuple[str, ...] = ()
    fixes: tuple[Fix, ...] = ()
    location: Location | None = None


class LaunchError(Exception):
    """A stage failed. Carries every finding of that stage; the class determines the exit code."""

    exit_code = 1

    @classmethod
    def of(cls, code: str, message: str, *notes: str, key: str = "") -> Self:
        """The error with a single finding; `key`: the config key that it is about ("": none). See `fault`."""
        return cls([fault(code, key, message, *notes)])

    def __init__(self, findings: Iterable[Finding]) -> None:
        """Keep `findings` in order; the text of the exception is their messages."""
        self.findings = tuple(findings)
        super().__init__("\n".join(f"{f.severity}[{f.code}]: {f.message}" for f in self.findings))


class ConfigError(LaunchError):
    """YAML, a group choice, an override or the usage is wrong."""

    exit_code = 2


class CatalogError(LaunchError):
    """A model file or entry is missing, truncated or unreadable."""

    exit_code = 3


class PlanError(LaunchError):
    """The fleet does not fit, or breaks a rule."""

    exit_code = 4


class EngineError(LaunchError):
    """The llama-server binary is missing, or refuses a flag."""

    exit_code = 5


class HostError(LaunchError):
    """This host cannot run the plan now."""

    exit_code = 6


class SuperviseError(LaunchError):
    """A server did not become, or did not stay, ready."""

    exit_code = 7


STALE_EXIT_CODE = 8
"""Exit code of `render --check` when the files on disk are not what the config compiles to."""


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether any finding is an error (warnings and notes do not stop a stage)."""
    return any(f.severity == "error" for f in findings)


def fault(
    code: str,
    key: str,
    message: str,
    *notes: str,
    fixes: tuple[Fix, ...] = (),
    location: Location | None = None,
    severity: Severity = "error",
) -> Finding:
    """A finding; an error unless `severity` says otherwise."""
    return Finding(code=code, severity=severity, key=key, message=message, notes=notes, fixes=fixes, location=location)
