"""What each key may hold: the config types of `launcher.ir.config`, read once as shapes. Pure.

A shape describes a value. Decoding walks shapes to check values; overrides walk them to know a key that no file wrote.
"""

from __future__ import annotations

from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec


class Anything(msgspec.Struct, frozen=True):
    """Any YAML value."""


class Text(msgspec.Struct, frozen=True):
    """A string."""


class Flag(msgspec.Struct, frozen=True):
    """true or false."""


class Number(msgspec.Struct, frozen=True):
    """A number, whole or not, from `low` to `high` (None: no limit)."""

    whole: bool
    low: float | None = None
    high: float | None = None

    @property
    def limits(self) -> str:
        """For people: `1 to 65535`, `0 or more`; "" without limits."""
        if self.low is None:
            return ""
        return f"{self.low} or more" if self.high is None else f"{self.low} to {self.high}"

    def has(self, value: float) -> bool:
        """Whether `value` is within the limits."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


class Size(msgspec.Struct, frozen=True):
    """Bytes, `low` at least: an integer, or a string with a unit."""

    low: float | None = None


class Choice(msgspec.Struct, frozen=True):
    """One of some strings."""

    options: tuple[str, ...]


class Many(msgspec.Struct, frozen=True):
    """A list whose items have one shape."""

    item: Shape


class Table(msgspec.Struct, frozen=True):
    """A mapping from free names to values of one shape."""

    value: Shape


class Record(msgspec.Struct, frozen=True):
    """A mapping with the keys of a struct."""

    struct: type[msgspec.Struct]


class Either(msgspec.Struct, frozen=True):
    """One of several shapes, or null where `nullable`."""

    options: tuple[Shape, ...]
    nullable: bool


Shape = Anything | Text | Flag | Number | Size | Choice | Many | Table | Record | Either


class Field(msgspec.Struct, frozen=True):
    """One key of a record. `required`: it must be written, and has no default."""

    shape: Shape
    default: Any
    required: bool


_PLAIN: dict[Any, Shape] = {
    Any: Anything(),
    str: Text(),
    bool: Flag(),
    int: Number(whole=True),
    float: Number(whole=False),
}


@cache
def shape_of(hint: Any) -> Shape:
    """The shape of a type annotation as the config types use them. Raises TypeError for any other."""
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        meta = next((m for m in args[1:] if isinstance(m, msgspec.Meta)), msgspec.Meta())
        if "bytes" in args[1:]:
            return Size(low=meta.ge)
        return Number(whole=args[0] is int, low=meta.ge, high=meta.le)
    if origin is Literal:
        return Choice(options=args)
    if origin is tuple:
        return Many(item=shape_of(args[0]))
    if origin is dict:
        return Table(value=shape_of(args[1]))
    if origin in (Union, UnionType):
        return Either(options=tuple(shape_of(a) for a in args if a is not NoneType), nullable=NoneType in args)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return Record(struct=hint)
    raise TypeError(f"no shape for the annotation {hint!r}")


@cache
def fields_of(struct: type[msgspec.Struct]) -> dict[str, Field]:
    """The keys of a record, in the order they are declared."""
    fields = {}
    for field in msgspec.structs.fields(struct):
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        fields[field.name] = Field(shape=shape_of(field.type), default=default, required=field.required)
    return fields


def inner(shape: Shape | None, part: str) -> Shape | None:
    """The shape under key (or list index) `part`; None when the shape knows no such key, or is None.

    A `Table` gives its value's shape for every name: whether the name exists is the tree's matter.
    """
    match shape:
        case Record(struct=struct):
            field = fields_of(struct).get(part)
            return None if field is None else field.shape
        case Table(value=value):
            return value
        case Many(item=item):
            return item if part.isdecimal() else None
        case Either(options=options):
            found = (inner(option, part) for option in options)
            return next((s for s in found if s is not None), None)
        case Anything():
            return shape
        case _:
            return None


def declared_keys(shape: Shape | None) -> tuple[str, ...]:
    """Keys that the types declare under `shape`; none for tables and values."""
    match shape:
        case Record(struct=struct):
            return tuple(fields_of(struct))
        case Either(options=options):
            return tuple(key for option in options for key in declared_keys(option))
        case _:
            return ()


def describe(shape: Shape) -> str:  # noqa: C901 - one line a shape
    """The shape in words, for messages: `an integer`, `a list of strings`."""
    match shape:
        case Text():
            return "a string"
        case Flag():
            return "true or false"
        case Number(whole=whole):
            return "an integer" if whole else "a number"
        case Size():
            return "a size (bytes, or a string such as 18GB or 500GiB)"
        case Choice(options=options):
            return "one of " + ", ".join(options)
        case Many(item=item):
            return f"a list, each item {describe(item)}"
        case Table(value=value):
            return "a mapping" if isinstance(value, Anything) else f"a mapping, each value {describe(value)}"
        case Record(struct=struct):
            return f"a mapping ({', '.join(list(fields_of(struct))[:4])}…)"
        case Either(options=options, nullable=nullable):
            return " or ".join(describe(option) for option in options) + (" or null" if nullable else "")
        case Anything():
            return "any value"
