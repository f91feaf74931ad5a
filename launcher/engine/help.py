"""Parse `llama-server --help`. Pure.

The layout is `common_arg::to_string` (llama.cpp common/arg.cpp): names joined by ", ", then the value hints, padded to
40 columns; a longer head stands alone on its line, and every line of help begins at column 40.
"""

from __future__ import annotations

import re

from launcher.ir.dialect import Flag

HELP_COLUMN = 40
HEAD_MAX = HELP_COLUMN - 3
"""A head longer than this is followed by a line break."""

_NAMES = re.compile(r"-{1,2}[A-Za-z0-9][\w.-]*(?:,\s+-{1,2}[A-Za-z0-9][\w.-]*)*")
_ENV = re.compile(r"\(env: (\w+)\)")
_BULLET = re.compile(r"^- ([\w+.-]+)(?: \(default\))?:", re.MULTILINE)
_ALLOWED = re.compile(r"allowed values: ([\w, ]+?)(?:\n|$| \()")
_QUOTED = re.compile(r"\(((?:'[\w-]+',? ?(?:or )?){2,})")
_QUOTED_DEFAULT = re.compile(r", default: '([\w-]+)'")
_TWO_VALUES = re.compile(r"[A-Z][A-Z0-9_]* [A-Z][A-Z0-9_]*")
_LIST = re.compile(r"[a-z0-9-]+(?:,[a-z0-9-]+)+")


def parse_help(text: str) -> tuple[Flag, ...]:
    """Every flag that `text` (the output of `llama-server --help`) documents, in its order."""
    entries: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("-") and not line.startswith("----"):
            head, help_start = _split_head(line)
            entries.append((head, [help_start] if help_start else []))
        elif entries and line.startswith(" " * HELP_COLUMN):
            entries[-1][1].append(line[HELP_COLUMN:].rstrip())
    return tuple(flag for head, help_lines in entries if (flag := _flag(head, help_lines)) is not None)


def _split_head(line: str) -> tuple[str, str]:
    """Names and value hint of an entry's first line, and the help that begins on it ("" when it stands alone)."""
    if len(line) > HELP_COLUMN and line[HEAD_MAX:HELP_COLUMN].isspace():
        return line[:HEAD_MAX].rstrip(), line[HELP_COLUMN:].rstrip()
    return line.rstrip(), ""


def _flag(head: str, help_lines: list[str]) -> Flag | None:
    """The flag that one entry describes; None if its head is no option."""
    match = _NAMES.match(head)
    if match is None:
        return None
    spellings = tuple(name.strip() for name in match[0].split(","))
    hint = head[match.end() :].strip()
    split = _first_negation(spellings)
    raw = "\n".join(help_lines).strip()
    env = _ENV.search(raw)
    prose = _ENV.sub("", raw).strip()
    flat = " ".join(prose.split())
    return Flag(
        names=spellings[:split],
        negations=spellings[split:],
        arity=_arity(hint),
        choices=_choices(hint, prose),
        env=env[1] if env else None,
        default=_default(flat),
        deprecated=flat if "DEPRECATED" in flat else None,
        removed="argument has been removed" in flat,
        help=flat,
    )


def _first_negation(spellings: tuple[str, ...]) -> int:
    """Index of the first spelling that switches the flag off; a long one is `--no-…`, all follow the others.

    Without a long spelling before it, `--no-…` is the flag's own name (`--no-host`). A short spelling just before it
    (`-nkvo`, `-no-kvu`) belongs to it.
    """
    for i, name in enumerate(spellings):
        if name.startswith("--no-") and any(n.startswith("--") for n in spellings[:i]):
            before = spellings[i - 1]
            return i - 1 if not before.startswith("--") and before.startswith("-n") else i
    return len(spellings)


def _arity(hint: str) -> int:
    """How many words follow the flag: `START END` is two, any other hint one."""
    if not hint:
        return 0
    return 2 if _TWO_VALUES.fullmatch(hint) else 1


def _choices(hint: str, prose: str) -> tuple[str, ...]:
    """The values that the hint or the help lists; a range (`<0...100>`) and placeholders list none."""
    if len(hint) > 2 and hint[0] + hint[-1] in ("[]", "{}", "<>"):
        inner = hint[1:-1]
        if ".." not in inner and ("|" in inner or "," in inner):
            return tuple(re.split(r"[|,]", inner))
        return ()
    if _LIST.fullmatch(hint):
        return tuple(hint.split(","))
    if not hint or hint == "N":
        return ()
    if allowed := _ALLOWED.search(prose):
        return tuple(v.strip() for v in allowed[1].split(","))
    if bullets := _BULLET.findall(prose):
        return tuple(bullets)
    if quoted := _QUOTED.search(prose):
        return tuple(re.findall(r"'([\w-]+)'", quoted[1]))
    return ()


def _default(flat: str) -> str | None:
    """What `(default: …)` says, brackets balanced; None when the help gives no default."""
    start = flat.find("(default: ")
    if start < 0:
        quoted = _QUOTED_DEFAULT.search(flat)
        return quoted[1] if quoted else None
    depth = 0
    for i in range(start, len(flat)):
        depth += {"(": 1, ")": -1}.get(flat[i], 0)
        if depth == 0:
            return flat[start + len("(default: ") : i].strip() or None
    return None
