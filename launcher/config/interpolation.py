"""`${…}` in values, resolved by OmegaConf. Pure but for `oc.env`."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config.located import joined
from launcher.errors import Finding, fault

Path = tuple[Any, ...]
"""Keys and indices from the root; a dotted key is not one to one, where a key is empty or has a dot."""
UNRESOLVED = (OmegaConfBaseException, ValueError, TypeError, AttributeError, RecursionError)
"""Exceptions of an interpolation: resolvers raise any of Python's."""


def resolve(tree: dict[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The tree with every interpolation replaced by its value; those that cannot be are findings, left as null."""
    findings: list[Finding] = []
    if not any(_strings(tree, (), "")):
        return tree, findings
    plain = deepcopy(tree)
    while True:
        try:
            resolved: Any = OmegaConf.to_container(OmegaConf.create(plain), resolve=True)
        except UNRESOLVED as error:
            # find the values that raise, and go on without them
            broken = list(_malformed(plain)) or list(_broken(plain))
            if not broken:
                return {}, [*findings, _finding("", "", error)]
            for (*above, last), key, text, reason in broken:
                node: Any = plain
                for part in above:
                    node = node[part]
                node[last] = None
                findings.append(_finding(key, text, reason))
        else:
            return {str(key): value for key, value in resolved.items()}, findings


def _malformed(plain: Any) -> Iterator[tuple[Path, str, str, Exception]]:
    """Path, dotted key, text and reason of each string that is not even well-formed."""
    for path, key, text in _strings(plain, (), ""):
        try:
            OmegaConf.create({"value": text})
        except UNRESOLVED as error:
            yield path, key, text, error


def _broken(plain: Any) -> Iterator[tuple[Path, str, str, Exception]]:
    """The same of each string whose interpolation fails."""
    root = OmegaConf.create(plain)
    for path, key, text in _strings(plain, (), ""):
        node: Any = root
        try:
            for part in path[:-1]:
                node = node._get_node(part)  # noqa: SLF001 - the public access would resolve on the way
            value = node[path[-1]]
            if OmegaConf.is_config(value):
                OmegaConf.to_container(value, resolve=True)
        except UNRESOLVED as error:
            yield path, key, text, error


def _strings(node: Any, path: Path, key: str) -> Iterator[tuple[Path, str, str]]:
    """Path, dotted key and text of every string with `${`."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for part, value in items:
        if isinstance(value, str) and "${" in value:
            yield (*path, part), joined(key, part), value
        else:
            yield from _strings(value, (*path, part), joined(key, part))


def _finding(key: str, text: str, error: Exception) -> Finding:
    reason = str(error).partition("\n")[0] or type(error).__name__
    note = "write the value, or the full dotted key of another value: ${hardware.name}"
    if "${now" in text or "${hydra:" in text:
        where = key or "KEY"
        note = f"a fleet compiles to the same whenever and wherever it is: give the value, {where}=$(date +%Y-%m-%d)"
    return fault("config/interpolation", key, f"cannot resolve {text!r}: {reason}", note)
