"""The overrides as they were typed, parsed with Hydra's own grammar. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException

from launcher.config.nearest import listing, nearest, spell
from launcher.config.schema import Anything, Either, Many, Shape, Text, inner, shape_of
from launcher.config.unread import why_unread
from launcher.errors import Finding, Fix, Location, fault
from launcher.ir.config import FleetConfig

COMMAND_LINE = "<command line>"
"""File name of locations that are positions of overrides, from 1."""


_HOW_TO = "write KEY=VALUE, +KEY=VALUE to add, ~KEY to remove; quote values with spaces or special characters"


COMMANDS = frozenset(
    [
        "add",
        "calibrate",
        "check",
        "checkpoint",
        "config",
        "down",
        "events",
        "explain",
        "import",
        "init",
        "inspect",
        "install",
        "logs",
        "memory",
        "preload",
        "evict",
        "unpin",
        "pin",
        "plan",
        "ps",
        "pull",
        "reload",
        "remove",
        "render",
        "restart",
        "serve",
        "status",
        "stop",
        "sweep",
        "switch",
        "top",
        "ui",
        "uninstall",
        "up",
    ]
)
"""Words that are commands when they come first; a test compares them with the command line's own."""

_NO_GROUPS: Mapping[str, Sequence[str]] = MappingProxyType({})


class Typed(msgspec.Struct, frozen=True):
    """One override: its position on the command line (from 1; 0 when we added it), its text, its meaning."""

    position: int
    text: str
    meaning: Override

    @property
    def key(self) -> str:
        """The dotted key or the group, without package."""
        return self.meaning.key_or_group

    @property
    def value(self) -> Any:
        """The plain value; None also where there is none."""
        return self.meaning.value()

    @property
    def location(self) -> Location:
        """Where it was typed."""
        return command_line(self.position)

    @property
    def value_text(self) -> str:
        """The text after the first `=`."""
        return self.text.partition("=")[2]


def command_line(position: int) -> Location:
    """The location of the override at `position`."""
    return Location(file=COMMAND_LINE, line=position)


def parse_overrides(
    texts: Sequence[str], groups: Mapping[str, Sequence[str]] = _NO_GROUPS
) -> tuple[list[Typed], list[Finding]]:
    """Parse every override; grammar errors and sweeps are `config/override` findings, all of them.

    `groups` are config groups with their options, for words without a `=`.
    """
    parser = OverridesParser.create()
    typed, findings = [], []
    for position, text in enumerate(texts, 1):
        try:
            text.encode()  # argv may carry bytes that are not UTF-8
            meaning = parser.parse_rule(text, "override")
        except (HydraException, ValueError, TypeError, AssertionError, ArithmeticError, RecursionError) as error:
            # Hydra's cast functions raise what Python raises
            findings.append(_unparsed(texts, position, str(error), groups))
            continue
        override = Typed(position, text, meaning)
        if not override.key.strip("."):
            findings.append(refused(override, f"{text!r} names no key", notes=(_HOW_TO,)))
        elif meaning.is_sweep_override():
            findings.append(_sweep(override))
        else:
            typed.append(override)
    return typed, findings


def appended(group: str, options: Iterable[str]) -> Typed:
    """`+group=[options]`, as if typed."""
    names = list(options)
    meaning = Override(type=OverrideType.ADD, key_or_group=group, value_type=ValueType.ELEMENT, _value=list[Any](names))
    text = f"+{group}={spell(names)}"
    meaning.input_line = text
    return Typed(0, text, meaning)


def refused(override: Typed, message: str, *, notes: tuple[str, ...] = (), fixes: tuple[Fix, ...] = ()) -> Finding:
    """A `config/override` error about one override."""
    return fault("config/override", override.key, message, *notes, fixes=fixes, location=override.location)


def _unparsed(texts: Sequence[str], position: int, error: str, groups: Mapping[str, Sequence[str]]) -> Finding:
    """The finding for text that Hydra's grammar refuses."""
    text = texts[position - 1]
    key, equals, value = text.partition("=")
    bare_key = key.strip().lstrip("+~")
    if bare_key and not equals and not text.startswith("~"):
        return _bare(texts, position, groups)
    fixes: tuple[Fix, ...] = ()
    if (
        equals
        and bare_key
        and text.isprintable()
        and not set(value) & set("[]{}()'\"")
        and all(part.isidentifier() for part in bare_key.split("."))
    ):
        fixes = (Fix(override=f"{key.strip()}={_quoted(value)}", effect="quotes the value"),)
    return fault(
        "config/override",
        bare_key,
        f"cannot read the override {text!r}: {why_unread(text, error)}",
        _HOW_TO,
        fixes=fixes,
        location=command_line(position),
    )


def _bare(texts: Sequence[str], position: int, groups: Mapping[str, Sequence[str]]) -> Finding:
    """The finding for a word without a `=`: a command in the wrong place, a group, or an option of a group."""
    word = texts[position - 1].strip()
    having = [group for group, options in groups.items() if word in options]
    fixes = tuple(Fix(override=f"{group}={word}", effect=f"chooses it in {group}/") for group in having[:3])
    if word in COMMANDS:
        others = [text for i, text in enumerate(texts, 1) if i != position and text not in COMMANDS]
        notes: tuple[str, ...] = (f"commands go first: {' '.join(['launch', word, *others])}",)
    elif word.lstrip("+") in groups:
        notes = (listing(f"choose one: {word}=…, of", groups[word.lstrip("+")]),)
    else:
        near = nearest(word, COMMANDS)
        notes = (f"write KEY=VALUE: {word}=…", *((f"the command {near} goes first",) if near else ()))
    return fault(
        "config/override",
        "",
        f"{word!r} is no override: it has no `=`",
        *notes,
        fixes=fixes,
        location=command_line(position),
    )


def _quoted(value: str) -> str:
    """`value` as a quoted string, whatever it looks like."""
    spelled = spell(value)
    return spelled if spelled[:1] == "'" else f"'{spelled}'"


def _kinds(key: str) -> set[type]:
    """What may stand at a key: `Many` where a list, `Text` where a string; where the types say nothing, both."""
    shape: Shape | None = shape_of(FleetConfig)
    for part in key.split("."):
        shape = inner(shape, part) if shape is not None else None
    shapes = shape.options if isinstance(shape, Either) else (shape,)
    anything = any(s is None or isinstance(s, Anything) for s in shapes)
    return {Many, Text} if anything else {type(s) for s in shapes}


def _sweep(override: Typed) -> Finding:
    """The finding for several values at once."""
    value = override.value_text
    fixes: tuple[Fix, ...] = ()
    if override.meaning.value_type == ValueType.SIMPLE_CHOICE_SWEEP:
        head = override.text.partition("=")[0]
        kinds = _kinds(override.key)
        if Many in kinds:
            fixes += (Fix(override=f"{head}=[{value}]", effect="one list"),)
        if Text in kinds:
            fixes += (Fix(override=f"{head}={_quoted(value)}", effect="one string"),)
        first, _, _ = value.partition(",")
        fixes = fixes or (Fix(override=f"{head}={first}", effect="the first of them"),)
    return refused(
        override,
        f"{override.text!r} gives several values, and a fleet is compiled once",
        notes=("`launch -m` plans each value, `launch sweep` measures them",),
        fixes=fixes,
    )
