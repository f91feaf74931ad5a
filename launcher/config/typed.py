"""The overrides as they were typed, parsed with Hydra's own grammar. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import islice, product
from types import MappingProxyType
from typing import Any

import msgspec
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from launcher.config.nearest import listing, nearest, spell
from launcher.config.schema import Anything, Either, Many, Shape, Text, inner, shape_of
from launcher.errors import ConfigError, Finding, Fix, Location, fault
from launcher.ir.config import FleetConfig

COMMAND_LINE = "<command line>"
"""File name of locations that are positions of overrides, from 1."""


_HOW_TO = "write KEY=VALUE, +KEY=VALUE to add, ~KEY to remove; quote values with spaces or special characters"


COMMANDS = frozenset(
    (
        *("add", "calibrate", "check", "checkpoint", "config", "down", "events", "evict", "explain", "import", "init"),
        *("inspect", "install", "logs", "memory", "pin", "plan", "preload", "ps", "pull", "reload", "remove"),
        *("render", "restart", "serve", "status", "stop", "sweep", "switch", "top", "ui", "uninstall", "unpin", "up"),
    )
)
"""Words that are commands when they come first; a test compares them with the command line's own."""

REFUSES = (HydraException, ValueError, TypeError, AssertionError, ArithmeticError, RecursionError)
"""Exceptions of Hydra's parser: its cast functions raise any of Python's."""

VALUES_MAX = 100_000
"""Values of one override that are counted: `range(0,10000000000)` is one zero too many, and fills no memory."""

_NO_GROUPS: Mapping[str, Sequence[str]] = MappingProxyType({})


_PAIRS = {"]": "[", "}": "{", ")": "("}
_KEY = re.compile(r"(\+\+?|~)?[A-Za-z_][\w.$-]*(/[A-Za-z_][\w./-]*)?(@:?[\w./-]*)?")
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_CALL = re.compile(r"\w+ while evaluating ('.*?'): (.+)")


class Typed(msgspec.Struct, frozen=True):
    """One override: where it was typed (at position 0 when we added it), its text, and what it means.

    `key` is the dotted key or the group, without package; `value` is plain, and None also where there is none.
    """

    location: Location
    text: str
    meaning: Override
    key: str
    value: Any

    @property
    def value_text(self) -> str:
        """The text after the first `=`."""
        return self.text.partition("=")[2]


def parse_overrides(
    texts: Sequence[str], groups: Mapping[str, Sequence[str]] = _NO_GROUPS, *, first: int = 1
) -> tuple[list[Typed], list[Finding]]:
    """Parse every override; grammar errors and sweeps are `config/override` findings, all of them.

    `groups` are config groups with their options, for words without a `=`. `first`: the position of the first.
    """
    parser = OverridesParser.create()
    typed, findings = [], []
    for position, text in enumerate(texts, first):
        location = Location(file=COMMAND_LINE, line=position)
        try:
            text.encode()  # argv may carry bytes that are not UTF-8
            meaning = parser.parse_rule(text, "override")
        except REFUSES as error:
            findings.append(_unparsed(text, texts, str(error), groups, location))
            continue
        override = Typed(location, text, meaning, meaning.key_or_group, meaning.value())
        if not override.key.strip("."):
            message = f"{text!r} names no key"
            findings.append(fault("config/override", override.key, message, _HOW_TO, location=override.location))
        elif meaning.is_sweep_override():
            findings.append(_sweep(override))
        else:
            typed.append(override)
    return typed, findings


def refused(override: Typed, why: str, *notes: str, fixes: tuple[Fix, ...] = ()) -> Finding:
    """A `config/override` error about one override: its text, and why."""
    message = f"{override.text!r}: {why}"
    return fault("config/override", override.key, message, *notes, fixes=fixes, location=override.location)


def _unparsed(
    text: str, texts: Sequence[str], error: str, groups: Mapping[str, Sequence[str]], location: Location
) -> Finding:
    key, equals, value = text.partition("=")
    bare_key = key.strip().lstrip("+~")
    if bare_key and not equals and not text.startswith("~"):
        return _bare(text.strip(), [other for other in texts if other is not text], groups, location)
    fixes: tuple[Fix, ...] = ()
    if (
        equals
        and bare_key
        and text.isprintable()
        and not set(value) & set("[]{}()'\"")
        and all(part.isidentifier() for part in bare_key.split("."))
    ):
        fixes = (Fix(override=f"{key.strip()}={_quoted(value)}", effect="quotes the value"),)
    message = f"cannot read the override {text!r}: {_why_unread(text, error)}"
    return fault("config/override", bare_key, message, _HOW_TO, fixes=fixes, location=location)


def _why_unread(text: str, error: str) -> str:
    """The reason that `text` is no override; `error` is what Hydra's parser or a function in it said."""
    key, equals, value = text.partition("=")
    called = _CALL.match(error)
    if called is not None:
        return f"{called[1]} cannot be evaluated: {called[2]}"
    if not key.strip().lstrip("+~"):
        return "no key stands before the `=`" if equals else "it names no key"
    if not _KEY.fullmatch(key.strip()) or key.strip().endswith("."):
        return f"{key.strip()!r} cannot be a key: names of letters, digits, - and _, with dots between them"
    if not equals:
        return "what follows the key does not belong here"
    unquoted = _QUOTED.sub("", value)
    if "'" in unquoted or '"' in unquoted:
        return "a quote is opened and not closed"
    bracket = _unmatched(unquoted)
    if bracket:
        return f"a bracket has no partner: {bracket}"
    if set(unquoted) & set("[{("):
        return "a list is [a,b], a mapping is {k: v}, and what has special characters is quoted"
    return "the value has a character that must be quoted"


def _unmatched(text: str) -> str:
    """The first bracket of `text` that is closed but not open, or the last that is open and never closed."""
    open_brackets: list[str] = []
    for character in text:
        if character in _PAIRS.values():
            open_brackets.append(character)
        elif character in _PAIRS and (not open_brackets or open_brackets.pop() != _PAIRS[character]):
            return character
    return open_brackets[-1] if open_brackets else ""


def _bare(word: str, others: Sequence[str], groups: Mapping[str, Sequence[str]], location: Location) -> Finding:
    """The finding for a word without a `=`: a command in the wrong place, a group, or an option of a group."""
    having = [group for group, options in groups.items() if word in options]
    fixes = tuple(Fix(override=f"{group}={word}", effect=f"chooses it in {group}/") for group in having[:3])
    if word in COMMANDS:
        rest = [text for text in others if text not in COMMANDS]
        notes: tuple[str, ...] = (f"commands go first: {' '.join(['launch', word, *rest])}",)
    elif word.lstrip("+") in groups:
        notes = (listing(f"choose one: {word}=…, of", groups[word.lstrip("+")]),)
    else:
        near = nearest(word, COMMANDS)
        notes = (f"write KEY=VALUE: {word}=…", *((f"the command {near} goes first",) if near else ()))
    message = f"{word!r} is no override: it has no `=`"
    return fault("config/override", "", message, *notes, fixes=fixes, location=location)


def _quoted(value: str) -> str:
    spelled = spell(value)
    return spelled if spelled[:1] == "'" else f"'{spelled}'"


def _kinds(key: str) -> set[type]:
    """What may stand at a key: `Many` where a list, `Text` where a string; where the types say nothing, both."""
    shape: Shape | None = shape_of(FleetConfig)
    for part in key.split("."):
        shape = inner(shape, part)
    shapes = shape.options if isinstance(shape, Either) else (shape,)
    anything = any(s is None or isinstance(s, Anything) for s in shapes)
    return {Many, Text} if anything else {type(s) for s in shapes}


def _sweep(override: Typed) -> Finding:
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
    message = f"{override.text!r} gives several values, and a fleet is compiled once"
    note = "`launch -m` plans each value, `launch sweep` measures them"
    return fault("config/override", override.key, message, note, fixes=fixes, location=override.location)


def each_run(overrides: Sequence[str], most: int) -> tuple[tuple[str, ...], ...]:
    """Overrides with several values (Hydra's `a=1,2`, `range()`, `choice()`) as one list for each combination.

    The last override's values change first. Raises ConfigError where there are more than `most`, before any is made.

    What has no values to go through (an interval, a `glob()`, no override at all) stays: who compiles it says so.
    """
    parser = OverridesParser.create()
    values = [_values(parser, text) for text in overrides]
    count = math.prod(map(len, values))
    if count > most:
        counted = "at least " if any(len(found) == VALUES_MAX for found in values) else ""
        raise ConfigError.of("config/override", f"{counted}{count} combinations are more than {most}")
    return tuple(product(*values))


def _values(parser: OverridesParser, text: str) -> list[str]:
    try:
        override = parser.parse_rule(text, "override")
        if not override.is_sweep_override() or not override.is_discrete_sweep():
            return [text]
        found = islice(override.sweep_string_iterator(), VALUES_MAX)
        return [f"{override.get_key_element()}={value}" for value in found]
    except REFUSES:
        return [text]
