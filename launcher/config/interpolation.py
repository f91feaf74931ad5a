"""`${…}` in values, resolved by OmegaConf. Pure but for `oc.env`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config.located import joined
from launcher.errors import Finding, fault


def has_interpolations(node: Any) -> bool:
    """Whether any string below `node` contains `${`."""
    if isinstance(node, str):
        return "${" in node
    if isinstance(node, dict):
        return any(has_interpolations(name) or has_interpolations(value) for name, value in node.items())
    if isinstance(node, list):
        return any(has_interpolations(value) for value in node)
    return False


def resolve(tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The tree with every interpolation replaced by its value; those that cannot be are findings, left as null."""
    findings: list[Finding] = []
    plain = _without(tree, "", findings)
    while True:
        try:
            resolved = OmegaConf.to_container(OmegaConf.create(plain), resolve=True)
        except (OmegaConfBaseException, ValueError, TypeError, AttributeError, RecursionError) as error:
            # resolvers raise what Python raises; find the values that do, and go on without them
            broken = list(_broken(plain))
            findings.extend(_finding(key, text, reason) for key, text, reason in broken)
            if not broken:
                return {}, [*findings, _finding("", "", error)]
            plain = _blanked(plain, "", {key for key, _, _ in broken})
            continue
        if not isinstance(resolved, dict):
            return {}, findings
        return {str(key): value for key, value in resolved.items()}, findings


def _without(node: Any, key: str, findings: list[Finding]) -> Any:
    """The tree without strings that are not even well-formed interpolations, each a finding."""
    if isinstance(node, dict):
        return {name: _without(value, joined(key, name), findings) for name, value in node.items()}
    if isinstance(node, list):
        return [_without(value, joined(key, i), findings) for i, value in enumerate(node)]
    if isinstance(node, str) and "${" in node:
        try:
            OmegaConf.create({"value": node})
        except (OmegaConfBaseException, ValueError, RecursionError) as error:
            findings.append(_finding(key, node, error))
            return None
    return node


def _broken(plain: Any) -> Iterator[tuple[str, str, Exception]]:
    """(dotted key, text, reason) of each string whose interpolation fails."""
    root = OmegaConf.create(plain)
    for path, text in _strings(plain, ()):
        node: Any = root
        try:
            for part in path[:-1]:
                node = node._get_node(part)  # noqa: SLF001 - the public access would resolve on the way
            value = node[path[-1]]
            if OmegaConf.is_config(value):
                OmegaConf.to_container(value, resolve=True)
        except (OmegaConfBaseException, ValueError, TypeError, AttributeError, RecursionError) as error:
            yield ".".join(map(str, path)), text, error


def _strings(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Every string with `${` and its path."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for part, value in items:
        if isinstance(value, str) and "${" in value:
            yield (*path, part), value
        else:
            yield from _strings(value, (*path, part))


def _blanked(node: Any, key: str, blank: set[str]) -> Any:
    """The tree with null at the dotted keys `blank`."""
    if key in blank:
        return None
    if isinstance(node, dict):
        return {name: _blanked(value, joined(key, name), blank) for name, value in node.items()}
    if isinstance(node, list):
        return [_blanked(value, joined(key, i), blank) for i, value in enumerate(node)]
    return node


def _finding(key: str, text: str, error: Exception) -> Finding:
    reason = str(error).partition("\n")[0] or type(error).__name__
    note = "write the value, or the full dotted key of another value: ${hardware.name}"
    if "${now" in text or "${hydra:" in text:
        where = key or "KEY"
        note = f"a fleet compiles to the same whenever and wherever it is: give the value, {where}=$(date +%Y-%m-%d)"
    return fault("config/interpolation", key, f"cannot resolve {text!r}: {reason}", note)
