"""The plain tree → the typed config, with every problem of every key found in one go. Pure.

Where a value is wrong, a stand-in of the right type takes its place, so that the rest can still be checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from launcher.config.located import MISSING, joined
from launcher.config.nearest import FLAG_NAMES, did_you_mean, listing, meant, nearest, set_to, spell
from launcher.config.schema import (
    Anything,
    Choice,
    Either,
    Flag,
    Many,
    Number,
    Record,
    Shape,
    Size,
    Table,
    Text,
    describe,
    fields_of,
    shape_of,
)
from launcher.config.typed import COMMAND_LINE
from launcher.errors import Finding, Fix, fault
from launcher.ir.config import SourceMap
from launcher.sizes import parse_size

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def decode(
    struct: type[_Struct], tree: Mapping[str, Any], sources: SourceMap | None = None
) -> tuple[_Struct, list[Finding]]:
    """`tree` as a config type, and what is wrong with it; `sources` say which keys files wrote.

    With any error among the findings the config holds stand-ins, good only for finding further errors.
    """
    decoder = _Decoder(sources or SourceMap(locations={}))
    value = decoder.value(shape_of(struct), dict(tree), "")
    if not isinstance(value, struct):
        raise TypeError("a record decodes to its struct")
    return value, decoder.findings


def stand_in(shape: Shape) -> Any:
    """An empty value of `shape`."""
    match shape:
        case Either(nullable=True) | Anything():
            return None
        case Either(options=options):
            return stand_in(options[0])
        case Text():
            return ""
        case Flag():
            return False
        case Number() | Size():
            return 0
        case Choice(options=options):
            return options[0]
        case Many():
            return ()
        case Table():
            return {}
        case Record(struct=struct):
            fields = fields_of(struct)
            return struct(**{name: stand_in(f.shape) if f.required else f.default for name, f in fields.items()})


class _Decoder:
    def __init__(self, sources: SourceMap) -> None:
        self.sources = sources
        self.findings: list[Finding] = []

    def value(self, shape: Shape, raw: Any, key: str) -> Any:  # noqa: C901 - one case a shape
        if not _takes(shape, raw) and not isinstance(shape, Choice):
            return self.wrong(shape, raw, key)
        match shape:
            case Number():
                return self.number(shape, raw, key)
            case Text() | Flag():
                return raw
            case Record():
                return self.record(shape, raw, key)
            case Either():
                return self.either(shape, raw, key)
            case Many():
                return tuple(self.value(shape.item, item, joined(key, i)) for i, item in enumerate(raw))
            case Choice():
                return self.choice(shape, raw, key)
            case Size():
                return self.size(shape, raw, key)
            case Table():
                return self.table(shape, raw, key)
            case Anything():
                return self.anything(raw, key)

    def error(self, code: str, key: str, message: str, *notes: str, fixes: tuple[Fix, ...] = ()) -> None:
        self.findings.append(fault(code, key, message, *notes, fixes=fixes))

    def wrong(self, shape: Shape, raw: Any, key: str) -> Any:
        note = f"write {describe(shape)}"
        if shape == Text() and isinstance(raw, bool | int | float):
            note = "YAML reads it as a number or a flag: put it in quotes"
        elif raw is None:
            note = "null is not allowed here: leave the key out for its default"
        message = f"{key} must be {describe(shape)}, not {_shown(raw)}"
        self.error("config/type", key, message, note, fixes=_type_fixes(shape, raw, key))
        return stand_in(shape)

    def anything(self, raw: Any, key: str) -> Any:
        """Any value, with mapping keys that JSON can hold."""
        if isinstance(raw, dict):
            for name in (name for name in raw if not isinstance(name, str)):
                message = f"{key}: the key {name!r} must be a string"
                self.error("config/type", joined(key, name), message, "put it in quotes")
            return {str(name): self.anything(v, joined(key, name)) for name, v in raw.items()}
        if isinstance(raw, list):
            return [self.anything(v, joined(key, i)) for i, v in enumerate(raw)]
        return raw

    def number(self, shape: Number, raw: float, key: str) -> Any:
        if not shape.has(raw) or not _finite(raw):
            limits = shape.limits or "of at most 64 bits"
            limits = limits if _finite(raw) and shape.limits else f"a finite number, {limits}"
            self.error("config/range", key, f"{key} is {_digits(raw)}, and must be {limits}", f"allowed: {limits}")
            return stand_in(shape)
        return raw if shape.whole else float(raw)

    def size(self, shape: Size, raw: int | str, key: str) -> Any:
        try:
            size = parse_size(raw)
        except ValueError as error:
            self.error("config/size", key, f"{key}: {error}", "write bytes, or a number with MB, GB, MiB or GiB")
            return 0
        if (shape.low is not None and size < shape.low) or not _finite(size):
            self.error("config/range", key, f"{key} is {_digits(size)} bytes", "write the real size")
            return 0
        return size

    def choice(self, shape: Choice, raw: Any, key: str) -> Any:
        if isinstance(raw, str) and raw in shape.options:
            return raw
        notes = [listing("choices", shape.options)]
        fixes: tuple[Fix, ...] = ()
        if isinstance(raw, str):
            fixes = did_you_mean(key, raw, shape.options)
        elif isinstance(raw, bool):
            word = "on" if raw else "off"
            notes.append("YAML reads a bare on, off, yes or no as true or false: put it in quotes")
            fixes = (set_to(key, word),) if word in shape.options else ()
        self.error("config/choice", key, f"{key} is {_shown(raw)}, not {describe(shape)}", *notes, fixes=fixes)
        return stand_in(shape)

    def table(self, shape: Table, raw: dict[Any, Any], key: str) -> Any:
        result = {}
        for name, value in raw.items():
            if isinstance(name, str) and name:
                result[name] = self.value(shape.value, value, joined(key, name))
            else:
                message = f"{key}: the name {name!r} must be a string"
                self.error("config/type", joined(key, name), message, "put it in quotes")
        return result

    def record(self, shape: Record, raw: dict[Any, Any], key: str) -> Any:
        struct, fields = shape.struct, fields_of(shape.struct)
        values = {}
        for name, field in fields.items():
            value = raw.get(name, MISSING)
            if isinstance(value, str) and value == MISSING:
                if field.required or name in raw:
                    values[name] = self.missing(field.shape, joined(key, name))
                continue
            values[name] = self.value(field.shape, value, joined(key, name))
        for name, value in raw.items():
            if name not in fields:
                self.unknown(joined(key, name), name, value, tuple(fields))
        return struct(**values)

    def missing(self, shape: Shape, key: str) -> Any:
        self.error("config/missing", key, f"{key} must be written: {describe(shape)}", f"write it: {key}=…")
        return stand_in(shape)

    def unknown(self, key: str, name: Any, value: Any, names: tuple[str, ...]) -> None:
        near = nearest(str(name), names)
        called = FLAG_NAMES.get(str(name).lower().lstrip("-").replace("-", "_"))
        near = called if called in names else near
        parent = key.rpartition(".")[0]
        known = listing("known keys", names, f"launch explain {parent}" if parent else "")
        place = self.sources.find(key)
        if place is not None and place.file != COMMAND_LINE:
            # an override would hide the mistake, and the file would keep it
            remedy = f"write {near} instead of {name}" if near else f"remove {name}"
            if not parent and isinstance(value, str) and value.endswith(".gguf"):
                remedy = f"a server stands below servers: `servers: {{{name}: {value}}}`"
            self.error("config/unknown-key", key, f"there is no key {key}", f"in {place.file}: {remedy}", known)
            return
        notes = (*meant(near), known)
        dotted = all(part.replace("-", "_").isidentifier() for part in key.split("."))
        fixes = (Fix(override=f"~{key}", effect="leaves it out"),) if value is not None and dotted else ()
        self.error("config/unknown-key", key, f"there is no key {key}", *notes, fixes=fixes)

    def either(self, shape: Either, raw: Any, key: str) -> Any:
        """One of several shapes: the one that takes this kind of value."""
        if raw is None and shape.nullable:
            return None
        for option in shape.options:
            open_choice = isinstance(option, Choice) and raw not in option.options and Text() in shape.options
            if _takes(option, raw) and not open_choice:
                return self.value(option, raw, key)
        if len(shape.options) == 1:
            return self.value(shape.options[0], raw, key)
        return self.wrong(shape, raw, key)


def _takes(shape: Shape, raw: Any) -> bool:
    """Whether `raw` is the kind of YAML value that `shape` is written as."""
    match shape:
        case Text() | Choice():
            return isinstance(raw, str)
        case Flag():
            return isinstance(raw, bool)
        case Number(whole=whole):
            return isinstance(raw, int if whole else int | float) and not isinstance(raw, bool)
        case Size():
            return isinstance(raw, int | str) and not isinstance(raw, bool)
        case Many():
            return isinstance(raw, list)
        case Table() | Record():
            return isinstance(raw, dict)
        case _:
            return True


def _finite(number: float) -> bool:
    """Whether a number is neither infinite nor nan, and an integer fits in 64 bits as JSON readers expect."""
    return abs(number) < 2**63 if isinstance(number, int) else math.isfinite(number)


def _digits(number: float) -> str:
    """A number in words, short: Python refuses to print integers of thousands of digits."""
    if isinstance(number, int) and abs(number) >= 10**30:
        return f"a number of {number.bit_length()} bits"
    return str(number)


def _shown(raw: Any) -> str:
    if raw is None:
        return "null"
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, dict):
        return "a mapping"
    if isinstance(raw, list):
        return "a list"
    text = _digits(raw) if isinstance(raw, int) else repr(raw)
    kind = "the string " if isinstance(raw, str) else ""
    return kind + (text if len(text) <= 60 else text[:57] + "…")


def _type_fixes(shape: Shape, raw: Any, key: str) -> tuple[Fix, ...]:
    """An override with the value that was clearly meant."""
    if isinstance(shape, Either):
        return tuple(fix for option in shape.options for fix in _type_fixes(option, raw, key))[:1]
    if isinstance(shape, Number) and isinstance(raw, str):
        try:
            number = int(raw) if shape.whole else float(raw)
        except ValueError:
            return ()
        return (set_to(key, number, "the number"),) if _finite(number) else ()
    if shape == Text() and isinstance(raw, int | float) and not isinstance(raw, bool) and _finite(raw):
        return (Fix(override=f"{key}='{raw}'", effect="the string"),)
    if isinstance(shape, Many) and _takes(shape.item, raw) and not isinstance(shape.item, Anything):
        return (Fix(override=f"{key}=[{spell(raw)}]", effect="a list of one"),)
    return ()
