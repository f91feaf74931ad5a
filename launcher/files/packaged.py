"""Data that ships with the package: `conf/`, `templates/`, `schemas/`, and the pages of `launch explain`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import launcher

_PAGE = re.compile(r'^\["([a-z-]+/[a-z0-9-]+)"\]$', re.MULTILINE)


def packaged_dir(kind: Literal["conf", "templates", "schemas"]) -> Path:
    """The directory of that name: the checkout's, beside the package, else the wheel's copy inside it.

    A checkout is known by its `pyproject.toml`, so that a `conf/` in site-packages is never ours.
    Raises FileNotFoundError when neither exists.
    """
    package = Path(launcher.__file__).resolve().parent
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / kind).is_dir():
        return checkout / kind
    packaged = package / "_packaged" / kind
    if packaged.is_dir():
        return packaged
    raise FileNotFoundError(f"the installation lacks its {kind}/ directory: looked at {checkout / kind} and {packaged}")


def fleet_schema_path() -> str | None:
    """Path of the JSON Schema of a fleet file, for an editor on this machine; None: not in this installation."""
    try:
        return str(packaged_dir("schemas") / "fleet.json")
    except FileNotFoundError:
        return None


def known_codes() -> tuple[str, ...]:
    """Codes of all findings, in the order of their pages."""
    pages = Path(launcher.__file__).with_name("cli") / "explanations.toml"
    return tuple(_PAGE.findall(pages.read_text(encoding="utf-8")))
