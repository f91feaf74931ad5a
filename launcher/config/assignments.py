"""Value overrides (`a.b=1`, `+a.b=1`, `++a.b=1`, `~a.b`) applied to the merged tree. Pure.

Hydra's semantics, with one relaxation: `=` also accepts a key that no file wrote but the config types declare
(`servers.frontdoor.kv_unified=true`), where plain Hydra would want a `+`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from launcher.config.located import ABSENT, MISSING, LocatedTree, child, joined
from launcher.config.nearest import listing, meant, nearest
from launcher.config.schema import Anything, Shape, Table, declared_keys, inner
from launcher.config.typed import Typed, refused
from launcher.errors import ConfigError, Finding, Fix, fault

COLLECTIONS = ("servers", "services", "models", "quantizations", "tiers", "hooks", "engines", "hardware", "runtime")
"""Maps that are searched for a key without its first part (`frontdoor.slots=4`)."""


def assign(located: LocatedTree, overrides: Iterable[Typed], shape: Shape, groups: Sequence[str] = ()) -> list[Finding]:
    """Apply `overrides` in order to `located`, whose root has `shape`; what cannot be applied is a finding.

    `groups` are config groups, for a group name that was misspelled.
    """
    findings: list[Finding] = []
    for override in overrides:
        try:
            _apply(_Target(located, override, shape, groups, override.key.split(".")))
        except ConfigError as error:
            findings += error.findings
    return findings


class _Target(NamedTuple):
    """One override on its way into the tree."""

    located: LocatedTree
    override: Typed
    shape: Shape
    groups: Sequence[str]
    parts: list[str]

    def steps(self) -> Iterator[tuple[int, str, Any, Any, Shape | None]]:
        """Each part of the key: its position, it, the value above it and the one there (ABSENT), the shape above it."""
        shape: Shape | None = self.shape
        node: Any = self.located.tree
        for i, part in enumerate(self.parts):
            below = child(node, part)
            yield i, part, node, below, shape
            shape, node = inner(shape, part), below


def _apply(target: _Target) -> None:
    """Write or remove what the override says. Raises ConfigError with the finding where that cannot be."""
    override, meaning = target.override, target.override.meaning
    if meaning.package is not None:
        raise ConfigError([_unknown_group(target)])
    if meaning.is_delete():
        _delete(target)
        return
    if not meaning.is_add() and not meaning.is_force_add():
        _check_known(target)
    else:
        for i, part, _, below, shape in target.steps():
            declared = declared_keys(shape)
            if declared and part not in declared and below is ABSENT:
                raise ConfigError([_unknown_key(target, i)])
    if meaning.is_add():
        present = target.located.find(target.parts)
        if present not in (ABSENT, None, MISSING) and not isinstance(override.value, dict | list):
            fix = Fix(override=override.text[1:], effect="changes the value that is there")
            raise ConfigError([refused(override, f"{override.key} is there already", fixes=(fix,))])
    _write(target)


def _delete(target: _Target) -> None:
    """`~a.b` and `~a.b=value`."""
    override, parts = target.override, target.parts
    present = target.located.find(parts)
    if present is ABSENT or present is None or present == MISSING:
        absent = (i for i, _, _, below, _ in target.steps() if below is ABSENT)
        raise ConfigError([_unknown_key(target, next(absent, len(parts) - 1))])
    if override.value is not None and override.value != present:
        fix = Fix(override=f"~{override.key}", effect="removes it whatever its value")
        raise ConfigError([refused(override, f"{override.key} has another value", fixes=(fix,))])
    parent = target.located.find(parts[:-1])
    if isinstance(parent, list):
        note = f"write the whole list: {'.'.join(parts[:-1])}=[…]"
        raise ConfigError([refused(override, "items of a list cannot be removed", note)])
    del parent[parts[-1]]
    target.located.forget(override.key)


def _check_known(target: _Target) -> None:
    """`a.b=value`: every step must be there, or be declared by the types."""
    for i, part, node, below, shape in target.steps():
        may_have_more = isinstance(node, dict) or node in (ABSENT, None, MISSING)
        if below is ABSENT and not (may_have_more and part in declared_keys(shape)):
            raise ConfigError([_unknown_key(target, i)])
    value, key = target.override.value, target.override.key
    if isinstance(value, dict) and isinstance(below, dict):
        _refuse_new_keys(target, value, below, inner(shape, part), key)


def _refuse_new_keys(
    target: _Target, value: dict[Any, Any], node: dict[Any, Any], shape: Shape | None, key: str
) -> None:
    """Raise ConfigError when merging `value` into `node` would make a key that nothing declares."""
    for name, item in value.items():
        below = node.get(name, ABSENT)
        if below is ABSENT and name not in declared_keys(shape):
            names = sorted({str(k) for k in node} | set(declared_keys(shape)))
            notes = (*meant(nearest(str(name), names)), listing("there", names))
            fix = Fix(override=f"+{target.override.text.lstrip('+')}", effect=f"adds {name} where names are free")
            raise ConfigError([_unknown(target, joined(key, name), *notes, fixes=(fix,))])
        if isinstance(item, dict) and isinstance(below, dict):
            _refuse_new_keys(target, item, below, inner(shape, name), joined(key, name))


def _write(target: _Target) -> None:
    """Write the value, making mappings on the way."""
    located, override, parts = target.located, target.override, target.parts
    node: Any = located.tree
    for i, part in enumerate(parts[:-1]):
        below = child(node, part)
        if not isinstance(below, dict | list):
            located.put(node, _index(target, node, part), {}, ".".join(parts[: i + 1]), override.location)
            below = child(node, part)
        node = below
    last = _index(target, node, parts[-1])
    _refuse_other_kind(override, override.value, child(node, parts[-1]), override.key)
    located.put(node, last, override.value, override.key, override.location)


def _refuse_other_kind(override: Typed, value: Any, present: Any, key: str) -> None:
    """Raise ConfigError when a list would replace a mapping or a mapping a list, at any depth of a merge."""
    if isinstance(value, dict) and isinstance(present, dict):
        for name, item in value.items():
            _refuse_other_kind(override, item, present.get(name, ABSENT), joined(key, name))
    elif isinstance(value, dict | list) and isinstance(present, dict | list) and type(value) is not type(present):
        kinds = ("a list", "a mapping") if isinstance(value, list) else ("a mapping", "a list")
        fix = Fix(override=f"~{key}", effect="removes what is there")
        raise ConfigError([refused(override, f"{kinds[0]} cannot replace {kinds[1]} at {key}", fixes=(fix,))])


def _index(target: _Target, node: Any, part: str) -> Any:
    if not isinstance(node, list):
        return part
    if child(node, part) is ABSENT:
        note = f"the list has {len(node)} items, counted from 0; or write the whole list"
        raise ConfigError([refused(target.override, f"the list has no item {part}", note)])
    return int(part)


def _unknown_key(target: _Target, position: int) -> Finding:
    """The finding for a key whose part at `position` is neither written nor declared."""
    override, parts = target.override, target.parts
    prefix, part = parts[:position], parts[position]
    parent = target.located.find(prefix)
    shape: Shape | None = target.shape
    for step in prefix:
        shape = inner(shape, step)
    names = {*declared_keys(shape), *(map(str, parent) if isinstance(parent, dict) else ())}
    fixes: list[Fix] = []
    near = nearest(part, names)
    if position == 0:
        group = nearest(part, target.groups) if len(parts) == 1 else None
        if group is not None and part not in names:
            return _unknown_group(target)
        near = _with_collection(target, part) or near
    if near is not None and near != part:
        key = ".".join([*prefix, near, *parts[position + 1 :]])
        fixes.append(_respelled(override, key))
    free = isinstance(shape, Table | Anything)
    if free and not override.meaning.is_delete() and position == len(parts) - 1:
        fixes.append(Fix(override=f"+{override.text}", effect=f"adds {override.key}"))
    where = f"in {'.'.join(prefix)}" if prefix else "top-level keys"
    empty = f"there are no {'.'.join(prefix)}" if free else f"{'.'.join(prefix)} is a value and has no keys"
    shows = f"launch explain {'.'.join(prefix)}" if prefix and not free else ""
    note = listing(where, names, shows) if names else empty
    return _unknown(target, ".".join(parts[: position + 1]), note, fixes=tuple(fixes))


def _with_collection(target: _Target, part: str) -> str | None:
    """`servers.frontdoor` for `frontdoor`."""
    for collection in COLLECTIONS:
        entries = target.located.tree.get(collection)
        names = {*declared_keys(inner(target.shape, collection)), *(entries if isinstance(entries, dict) else ())}
        if part in names:
            return f"{collection}.{part}"
    return None


def _respelled(override: Typed, key: str) -> Fix:
    """The same override at another key, which is written or declared, so that it needs no `+`."""
    sign = "~" if override.meaning.is_delete() else ""
    equals, value = override.text.partition("=")[1:]
    return Fix(override=f"{sign}{key}{equals}{value}", effect="the nearest key")


def _unknown(target: _Target, key: str, *notes: str, fixes: tuple[Fix, ...]) -> Finding:
    return fault(
        "config/unknown-key",
        target.override.key,
        f"{target.override.text!r}: there is no {key}",
        *notes,
        fixes=fixes,
        location=target.override.location,
    )


def _unknown_group(target: _Target) -> Finding:
    override = target.override
    near = nearest(override.key, target.groups)
    package = f"@{override.meaning.package}" if override.meaning.package is not None else ""
    sign = override.text[: len(override.text) - len(override.text.lstrip("+~"))]
    equals, value = override.text.partition("=")[1:]
    return fault(
        "config/unknown-group",
        override.key,
        f"there is no config group {override.key}/",
        listing("groups", target.groups),
        fixes=(Fix(override=f"{sign}{near}{package}{equals}{value}", effect="the nearest group"),) if near else (),
        location=override.location,
    )
