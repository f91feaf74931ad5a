"""One config file as Hydra sees it: package header, defaults list, values. I/O: reads files."""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import Any

import msgspec

from launcher.config.index import unreadable
from launcher.config.yamltree import parse_yaml
from launcher.errors import THIS_MACHINE, Finding, Location, fault

ENTRY_GROUPS = {
    "server": "servers",
    "service": "services",
    "upstream": "upstreams",
    "model": "models",
    "quantization": "quantizations",
    "tier": "tiers",
    "hook": "hooks",
    "engine": "engines",
}
"""Groups whose every file is one entry of a map: a file without a header lands at `<map>.<file name>`."""

DEFAULT_ENGINE = "engines.default"
"""Where engine/ files without a header land: choosing an engine chooses what servers run by default."""

CATALOGUE_GROUPS = ("model", "quantization", "tier")
"""Groups that are always loaded whole: entries do nothing until something refers to them."""

_HEADER = re.compile(r"\s*#\s*@")
_PACKAGE = re.compile(r"[^\s.]+(\.[^\s.]+)*")

_MAX_BYTES = 8 * 1024**2
"""More than a fleet file of ten thousand servers has: /dev/zero under another name must not fill the memory."""


class Fragment(msgspec.Struct, frozen=True):
    """One file: its values without the defaults list, the defaults list, and where each value was written.

    `package` is the header's, or the implied one of an entry group; None leaves it to Hydra (the group's name).
    `marks` has dotted keys inside the file; `""` is the file itself. `broken` when it could not be read.
    """

    file: str
    package: str | None
    tree: dict[str, Any]
    defaults: list[Any]
    marks: dict[str, Location]
    findings: tuple[Finding, ...] = ()
    broken: bool = False
    home: str = ""
    """Where the values go when no defaults list says otherwise; only for files whose `package` is not None."""


def read_fragment(path: str, file: str, *, everywhere: bool = False, draft: str | None = None) -> Fragment:
    """Read the file of config path `path` (`server/frontdoor`). What is wrong with it is in its findings.

    `everywhere`: without a header its keys are those of the whole config. `draft`: what it is taken to say.
    """
    try:
        text = _read_regular(file).decode("utf-8-sig") if draft is None else draft
    except (OSError, UnicodeDecodeError) as error:
        return Fragment(file, None, {}, [], {}, (unreadable(file, error),), broken=True)
    package, header_findings = _package(text, file)
    if package is None and everywhere:
        package = "_global_"
    elif package is None:
        package, more = _implied_package(path, file)
        header_findings += more
    group = path.rpartition("/")[0].replace("/", ".")
    home = (package or "").removeprefix("_global_").removeprefix(".")
    parsed = parse_yaml(text, file=file, prefix=group if package is None else home)
    tree, marks = parsed.tree, parsed.marks
    marks[""] = Location(file=file, line=1)
    defaults = tree.pop("defaults", [])
    findings = header_findings + parsed.findings
    if not isinstance(defaults, list):
        place, note = marks.get("defaults", marks[""]), "write one `- group: option` a line below `defaults:`"
        findings += (fault("config/defaults", "defaults", "the defaults list must be a list", note, location=place),)
        defaults = []
    broken = any(f.code in ("config/yaml", "config/package-header") for f in findings)
    return Fragment(file, package, tree, defaults, marks, findings, broken, home)


def _read_regular(file: str) -> bytes:
    """All of `file`. Raises OSError, also where it is a FIFO, a device or the like, or is larger than `_MAX_BYTES`.

    A FIFO without a writer would block for ever when opened plainly, a terminal would become ours.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", file)
        data = opened.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {_MAX_BYTES // 1024**2} MiB", file)
    return data


def probed_fragment(tree: dict[str, Any]) -> Fragment:
    """A fragment of values that were found out on this machine."""
    return Fragment(THIS_MACHINE, None, tree, [], {"": Location(file=THIS_MACHINE, line=1)})


def _package(text: str, file: str) -> tuple[str | None, tuple[Finding, ...]]:
    """The package that `# @package …` at the top of `text` names, as Hydra reads it, and what is wrong with it."""
    package = None
    in_header = True
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        if not _HEADER.match(line):
            if not line.lstrip().startswith("#"):
                break
            in_header = False
            continue
        words = line.lstrip("# \t").split()
        if words[0] != "@package":
            continue
        value = words[1] if len(words) == 2 else ""
        problem = ""
        if not in_header:
            problem = "the package header is ignored below another comment: it must be the first line"
        elif len(words) != 2 or not _PACKAGE.fullmatch(value):
            problem = f"not a package header: {line.strip()!r}"
        elif {"_name_", "_group_"} & set(value.split(".")):
            problem = f"_name_ and _group_ are not expanded in a package header: {line.strip()!r}"
        if problem:
            location = Location(file=file, line=number)
            note = "write the full place of the values, such as `# @package servers.frontdoor`"
            finding = fault("config/package-header", "", problem, note, location=location)
            return None, (finding,)
        package = value
    return package, ()


def _implied_package(path: str, file: str) -> tuple[str | None, tuple[Finding, ...]]:
    """The package of a file without a header in an entry group."""
    group, _, rest = path.partition("/")
    if not rest or group not in ENTRY_GROUPS:
        return None, ()
    if group == "engine":
        return DEFAULT_ENGINE, ()
    name = rest.rpartition("/")[2]
    if "." in name:
        finding = fault(
            "config/package-header",
            ENTRY_GROUPS[group],
            f"{file} names no package, and its file name cannot be one: a dot starts a new level",
            f"rename it to {name.replace('.', '_')}.yaml",
            location=Location(file=file, line=1),
        )
        return None, (finding,)
    return f"{ENTRY_GROUPS[group]}.{name}", ()
