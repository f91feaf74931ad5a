"""Which models' files somebody pinned, kept in the state directory, so that a restart unpins nothing. I/O."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from launcher.files import write_atomic
from launcher.orchestrate.pool import WarmPool

FILE_NAME = "pinned.json"
_LOG = logging.getLogger("launch.pool")


def keep_pins(pool: WarmPool, state_dir: Callable[[], Path]) -> None:
    """Have `pool` pin what was pinned when the last run ended, and write down what is from now on."""
    pool.remember_pins(_read(state_dir() / FILE_NAME), functools.partial(_write, state_dir))


def _read(path: Path) -> tuple[str, ...]:
    """The paths of pinned models; none where there is no file, or one that cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[str, ...])
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.DecodeError) as error:
        _LOG.warning("what was pinned is not known any more: %s: %s", path, error)
        return ()


def _write(state_dir: Callable[[], Path], pinned: Iterable[str]) -> None:
    """Keep them; a disk that takes nothing costs the next run its pins, and this one nothing."""
    path = state_dir() / FILE_NAME
    try:
        write_atomic(path, msgspec.json.encode(sorted(pinned)), mode=0o600)
    except OSError as error:
        _LOG.warning("what is pinned is not kept: %s: %s", path, error.strerror or error)
