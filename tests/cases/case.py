"""A case: one YAML file with a piece of config and, as comments, what the compiler must say about it.

The whole grammar (a line's `#:` comment, or `#!` behind the value that a finding is about):

    #: overrides: servers.a.slots=4 …            typed after `launch plan`
    #: gguf: FILE ARCH QUANTIZATION [FAULT]       a tiny model (tests/tinymodels), written into the model directory;
                                                  FAULT is one of tests/tinymodels/faulty, or `part NUMBER of 2`
    #: link: FILE TARGET                          a link in the model directory
    #: host: {available_bytes: 8GiB, …}           then `launch check`, on a host with these facts: fields of HostFacts
                                                  and HostInventory; what is not said is as the base's machine has it
    #: file: PATH [executable]                    another file, of the lines that follow, in the case's config directory
    #: error CODE [KEY] [at FILE:LINE] [says …]   a finding that is written elsewhere
    #: not CODE                                   this case is a near miss of that code
    #: argv SERVER has: --parallel 2              words in this order; `lacks:` for words that must not be there
    #: renders: PATH                              a file that the render makes
    slots: 300  #! error plan/slots-range takes 1 to 256

The findings must be these and no others, at these lines, with this text. Every override that a finding proposes is
then applied, and must remove it.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parent
SEVERITIES = "error|warning|note"

_INLINE = re.compile(rf"#!\s*({SEVERITIES})\s+(\S+)\s*(.*)$")
_FINDING = re.compile(rf"({SEVERITIES})\s+(\S+?)(?:\s+(?!at\b|says\b)(\S+))?(?:\s+at\s+(\S.*?))?(?:\s+says\s+(.*))?$")
_ARGV = re.compile(r"argv (\S+) (has|lacks): (.+)$")


class Expected(NamedTuple):
    """A finding that must be there; None and "" are not compared."""

    severity: str
    code: str
    key: str | None
    place: str | None
    says: str


class Words(NamedTuple):
    """Words of a server's command line that must be there, or must not."""

    server: str
    there: bool
    words: tuple[str, ...]


class Source(NamedTuple):
    """One file of a case, its lines numbered as in that file."""

    path: str
    text: str
    executable: bool


class Case(NamedTuple):
    """A case as written."""

    name: str
    overrides: tuple[str, ...]
    sources: tuple[Source, ...]
    models: tuple[tuple[str, ...], ...]
    links: tuple[tuple[str, ...], ...]
    host: dict[str, Any] | None
    expected: tuple[Expected, ...]
    near_misses: tuple[str, ...]
    argv: tuple[Words, ...]
    renders: tuple[str, ...]


def find_cases() -> list[Path]:
    """Every case file, sorted."""
    conf = ROOT / "conf"
    return sorted(p for p in ROOT.rglob("*.yaml") if conf not in p.parents)


def read_case(path: Path) -> Case:
    """The case in `path`. Raises ValueError for a comment that is not in the grammar."""
    sources = _split(path)
    expected = [e for source in sources for e in _inline(source)]
    said: dict[str, list[tuple[str, ...]]] = {"overrides": [], "gguf": [], "link": [], "renders": [], "not": []}
    argv: list[Words] = []
    host: dict[str, Any] | None = None
    for line in path.read_text(encoding="utf-8").splitlines():
        directive = line.removeprefix("#:").strip() if line.startswith("#:") else ""
        if not directive or directive.startswith("file: "):
            continue
        kind, _, rest = directive.partition(" ")
        if words := _ARGV.match(directive):
            argv.append(Words(words[1], words[2] == "has", tuple(shlex.split(words[3]))))
        elif kind == "host:":
            host = yaml.safe_load(rest)
        elif finding := _FINDING.match(directive):
            expected.append(Expected(finding[1], finding[2], finding[3], finding[4], finding[5] or ""))
        elif kind.removesuffix(":") in said:
            said[kind.removesuffix(":")].append(tuple(shlex.split(rest)))
        else:
            raise ValueError(f"{path}: not in the grammar of cases: {line}")
    overrides = [word for words in said["overrides"] for word in words]
    has_config = any(line.strip() and not line.lstrip().startswith("#") for line in sources[0].text.splitlines())
    return Case(
        name=path.relative_to(ROOT).with_suffix("").as_posix(),
        overrides=(*overrides, *([f"+case={path.stem}"] if has_config else [])),
        sources=sources if has_config else sources[1:],
        models=tuple((*words[:3], " ".join(words[3:])) for words in said["gguf"]),
        links=tuple(said["link"]),
        host=host,
        expected=tuple(expected),
        near_misses=tuple(code for codes in said["not"] for code in codes),
        argv=tuple(argv),
        renders=tuple(name for names in said["renders"] for name in names),
    )


def _split(path: Path) -> tuple[Source, ...]:
    """The files of a case: first its own config, then those that `#: file:` begins."""
    files: list[tuple[str, bool, list[str]]] = [(f"case/{path.stem}.yaml", False, [])]
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#: file: "):
            name = line.removeprefix("#: file: ").strip()
            files.append((name.removesuffix(" executable"), name.endswith(" executable"), []))
        else:
            files[-1][2].append(line)
    return tuple(Source(name, "\n".join(lines) + "\n", executable) for name, executable, lines in files)


def _inline(source: Source) -> list[Expected]:
    """The findings that are written behind the values they are about."""
    lines = enumerate(source.text.splitlines(), 1)
    found = ((number, _INLINE.search(line)) for number, line in lines)
    return [Expected(m[1], m[2], None, f"{source.path}:{number}", m[3]) for number, m in found if m]
