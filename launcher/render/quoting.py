r"""Text in units, scripts and pages: characters that none may contain, and quoting of the rest. Pure.

Rules of unit files: systemd.service(5) "Command lines", systemd.syntax(7) "Quoting"; src/basic/extract-word.c. Words
are wrapped in `"`, with `\` and `"` escaped, newlines and other control characters written as escapes, and `%` doubled
(specifiers). In command lines `$` is doubled too, except in the first word: a program's name is not searched for
variables.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from launcher.base.names import control_character
from launcher.errors import Finding, fault
from launcher.ir.config import FleetConfig
from launcher.ir.plan import FleetPlan

_QUOTED = frozenset(
    {
        *("extra_args", "env", "args", "body", "request_defaults", "request_set", "description", "title", "note"),
        *("reason", "effect", "waive", "source", "stated"),
    }
)
"""Fields whose text is quoted wherever it is written, or is written nowhere."""
_SECRET = re.compile(
    r"(?i)(?:^|_)(?:(?:API|ACCESS|AUTH|PRIVATE|SECRET)_?KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$"
)
_MARKS = ("@", "-", ":", "+", "!", "|")
"""What may stand before a program in a unit (systemd.service(5) "Command lines"), and is found in quotes, too."""
_ELSEWHERE_A_LINE_END = re.compile("[\x80-\x9f\u2028\u2029]")
_SECRET_FLAG = re.compile(r"--(?:[a-z-]+-)?(?:api-key|token|password|secret)(?:=.+)?")


def bad_characters(words: Iterable[str], key: str) -> tuple[Finding, ...]:
    """A `render/bad-character` error at `key` for each word with a NUL or a lone surrogate."""
    return tuple(
        _bad(f"{word!a} contains {what}", key)
        for word in words
        if not word.isprintable() and (what := _what(word)) is not None
    )


def control_characters(plan: FleetPlan) -> Iterator[Finding]:
    """A `render/bad-character` error for each value of the config with a control character that would end a line.

    Looked at are the values that become lines of units, addresses and paths, wherever they are written.
    """
    config = plan.config
    # a program's arguments and variables are quoted in its unit; a container's come through an engine that is not ours
    services = {
        name: service if service.container else msgspec.structs.replace(service, command=service.command[:1], env={})
        for name, service in config.services.items()
    }
    parts = {"deploy": config.deploy, "runtime": config.runtime, "services": services, "tiers": config.tiers}
    for name, value in {**parts, "hardware": config.hardware, "engines": config.engines}.items():
        yield from _walk(value, name)
    for key, word in _given(config):
        yield from bad_characters([word], key)
    programs = {"deploy.launch": config.deploy.launch}
    programs |= {f"engines.{name}.binary": engine.binary for name, engine in config.engines.items()}
    programs |= {f"services.{n}.command.0": service.command[0] for n, service in services.items() if service.command}
    for key, program in programs.items():
        if program.startswith(_MARKS):
            yield _bad(
                f"{program[:80]!a} begins with {program[0]}: in a unit that says with what rights it is run", key
            )


def _given(config: FleetConfig) -> Iterator[tuple[str, str]]:
    """What services and hooks are run with, beside what `_walk` looks at, by its key."""
    for name, service in config.services.items():
        args = service.container.args if service.container else ()
        yield from ((f"services.{name}.command.{i}", word) for i, word in enumerate(service.command) if i)
        yield from ((f"services.{name}.container.args.{i}", word) for i, word in enumerate(args))
        yield from ((f"services.{name}.env.{variable}", value) for variable, value in service.env.items())
    for name, hook in config.hooks.items():
        yield from ((f"hooks.{name}.command.{i}", word) for i, word in enumerate(hook.command))


def open_secrets(plan: FleetPlan) -> Iterator[Finding]:
    """`render/open-secret`: values that are secrets by their names, and would be written to world-readable files."""
    config = plan.config
    for collection in ("servers", "services", "engines"):
        for name, entry in getattr(config, collection).items():
            for variable, value in entry.env.items():
                if value and _SECRET.search(variable):
                    yield _open(f"{collection}.{name}.env.{variable}", variable)
    for name, service in config.services.items():
        words = (*service.command[1:], *(service.container.args if service.container else ()))
        for position, word in enumerate(words):
            if _SECRET_FLAG.fullmatch(word):
                yield _open(f"services.{name}.command.{position + 1}", word.partition("=")[0])


def refused_value(value: str) -> Finding | None:
    """The error for a value that would end a line of a unit or a page; None for any other.

    Line breaks that we write ourselves, between the words of a command, are no part of it; nor are those of Unicode,
    which end no line for systemd or a shell.
    """
    value = value.replace(" \\\n    ", " ")
    why = _not_one_line(_ELSEWHERE_A_LINE_END.sub("x", value))
    return None if why is None else _bad(f"{value[:80]!a} {why}", "")


def _walk(value: Any, key: str) -> Iterator[Finding]:
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            if name not in _QUOTED:
                yield from _walk(getattr(value, name), f"{key}.{name}")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _walk(item, f"{key}.{name}")
    elif isinstance(value, tuple):
        for position, item in enumerate(value):
            yield from _walk(item, f"{key}.{position}")
    elif isinstance(value, str) and (why := _not_one_line(value)) is not None:
        yield _bad(f"{value[:80]!a} {why}", key)


def _not_one_line(value: str) -> str | None:
    """Why `value` would be more, or less, than the rest of its line."""
    if value.endswith("\\"):
        return "ends with a backslash, which joins the next line to it"
    found = control_character(value)
    return None if found is None else f"contains the control character {found}, which would end the line"


def _what(word: str) -> str | None:
    """Name of the first thing in `word` that cannot be passed on, if any."""
    if "\0" in word:
        return "a NUL character"
    if any("\ud800" <= c <= "\udfff" for c in word):
        return "a lone surrogate, which is not text"
    return None


def _bad(message: str, key: str) -> Finding:
    return fault("render/bad-character", key, message)


def _open(key: str, name: str) -> Finding:
    message = f"{name} is a secret, and would stand in generated files that every user of the machine may read"
    notes = (
        "name a file that only the service reads (…_FILE, …_PATH, --api-key-file, runtime.server_key_file)",
        "or put it into a drop-in of the unit, which launch never touches: EnvironmentFile=/etc/secret.env",
    )
    return fault("render/open-secret", key, message, *notes)


def shell_lines(argv: Iterable[str]) -> tuple[str, ...]:
    """`argv` quoted for sh, one flag with its values per line, to be joined by a backslash and a line break.

    A new line begins at each word that starts with `-`; negative numbers stay with their flag.
    """
    lines: list[list[str]] = []
    for word in argv:
        is_flag = word.startswith("-") and not word[1:2].isdigit()
        if not lines or is_flag:
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return tuple(" ".join(line) for line in lines)


def shell_exports(env: Mapping[str, str]) -> tuple[str, ...]:
    """`env` as `export NAME=value` commands, sorted by name."""
    return tuple(f"export {name}={shlex.quote(env[name])}" for name in sorted(env))


_PLAIN = re.compile(r"[A-Za-z0-9_@/:.,=+-]+")
_NAMED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def quote_word(text: str) -> str:
    """`text` as one word of a unit file's value; plain words stay as they are. No NUL, no lone surrogate."""
    if _PLAIN.fullmatch(text):
        return text
    return '"' + "".join(_escape(c) for c in text).replace("%", "%%") + '"'


def quote_command(argv: Sequence[str]) -> tuple[str, ...]:
    """`argv` as the words of `ExecStart=` and its siblings, still apart, so that lines can be broken between them."""
    return (quote_word(argv[0]), *(quote_word(word).replace("$", "$$") for word in argv[1:]))


def quote_assignments(env: Mapping[str, str]) -> tuple[str, ...]:
    """`env` as words of `Environment=`, sorted; there `$` has no meaning."""
    return tuple(quote_word(f"{name}={env[name]}") for name in sorted(env))


def quote_bind(path: str) -> str:
    r"""`path` as a word of `BindReadOnlyPaths=`, which splits at `:` and has no escapes for control characters."""
    if _PLAIN.fullmatch(path) and ":" not in path:
        return path
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def credential_path(path: str) -> str:
    """`path` behind the `:` of `LoadCredential=`, which knows no quotes: only specifiers are replaced there."""
    return path.replace("%", "%%")


def _escape(char: str) -> str:
    if char in _NAMED:
        return _NAMED[char]
    if "\x80" <= char <= "\x9f" or char in "\u2028\u2029":  # they end no line for systemd, but for editors and pagers
        return f"\\u{ord(char):04x}"
    return f"\\x{ord(char):02x}" if char < " " or char == "\x7f" else char
