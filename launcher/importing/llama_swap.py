"""Translate llama-swap's config.yaml. Pure.

Source: llama-swap config.example.yaml and docs/configuration.md (models, macros, groups, hooks, filters, peers).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from launcher.importing.command import server_of
from launcher.importing.result import Flags, Imported, listed

SWAP = "swap"
"""The exclusive group of models that have no group of their own: one at a time, as in llama-swap."""

_MACRO = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")
_ROUNDS = 20
_KNOWN = frozenset(
    {"models", "macros", "groups", "hooks", "healthCheckTimeout", "globalTTL", "startPort", "logLevel", "logTimeFormat"}
) | {"logToStdout", "metricsMaxInMemory", "captureBuffer", "includeAliasesInList", "logRequests", "routing"}
_MODEL_SILENT = frozenset({"cmd", "name", "description", "aliases", "env", "ttl", "filters", "macros", "useModelName"})
_EACH = frozenset({"peers", "selectors", "profiles"})
"""Keys of which each entry is a finding of its own."""
_LOST = {
    "apiKeys": "keys are secrets: put them into a file and name it in runtime.front.api_key_file",
    "peers": "the front asks servers of its own fleet; several machines are hardware.hosts",
    "matrix": "models that may run together are those without the same `exclusive`",
    "sendLoadingState": "a client waits, or asks /v1/launch/status",
    "selectors": "servers with the same `roles` share what is asked of that name",
    "profiles": "a fleet file each, and `launch switch -f FILE`",
    "upstream": "a server's own pages are at its own port",
}


def from_llama_swap(tree: Mapping[str, Any], flags: Flags, env: Mapping[str, str]) -> Imported:
    """The servers of a llama-swap configuration; `env` is what `${env.NAME}` reads."""
    into = Imported()
    models = _mapping(tree.get("models"))
    start = _mapping(_mapping(tree.get("hooks")).get("on_startup"))
    preload = set(map(str, listed(start.get("preload"))))
    for name, model in models.items():
        if not isinstance(model, dict) or not isinstance(model.get("cmd"), str):
            into.add_loss(f"models.{name}", "has no `cmd`")
            continue
        _model(name, model, tree, flags=flags, env=env, into=into)
    _groups(tree, set(models), preload, into)
    for absent in sorted(preload - models.keys()):
        into.add_loss("hooks.on_startup", f"{absent} is no model")
    if tree.get("includeAliasesInList") is True:
        into.rest["runtime"] = {"front": {"list_aliases": True}}
    for key in tree:
        if key not in _KNOWN:
            inner = _mapping(tree[key]) if key in _EACH else {}
            for place in [f"{key}.{name}" for name in inner] or [str(key)]:
                into.add_loss(place, "is not translated", *([_LOST[key]] if key in _LOST else []))
    return into


def _model(
    name: str, model: dict[str, Any], tree: Mapping[str, Any], *, flags: Flags, env: Mapping[str, str], into: Imported
) -> None:
    macros = {**_mapping(tree.get("macros")), **_mapping(model.get("macros"))}
    where = f"models.{name}"
    unknown: set[str] = set()

    def expanded(text: str) -> str:
        return _expand(text, macros, name, env, unknown)

    # comments go first: a macro of several lines inside one would bring its later lines to life
    command = _without_comments(expanded(_without_comments(model["cmd"])))
    try:
        words = shlex.split(command.replace("\\\n", " "))
    except ValueError as error:
        into.add_loss(where, f"its command is no shell line: {error}")
        return
    for macro in sorted(unknown):
        into.add_loss(where, f"the macro ${{{macro}}} is defined nowhere")
    variables = dict(item.partition("=")[::2] for item in map(expanded, map(str, listed(model.get("env")))))
    fields = server_of(words, where, flags, into, variables)
    if fields is None:
        return
    for key in ("host", "port"):  # llama-swap's ${PORT}, or what its `proxy` says: ports are ours to give
        fields.pop(key, None)
    if not fields.get("file"):
        into.add_loss(where, "names no model file, and is left out")
        return
    aliases = [a.get("id") if isinstance(a, dict) else a for a in listed(model.get("aliases"))]
    names = [*fields.pop("aliases", []), *(expanded(str(a)) for a in aliases if a)]
    fields["ttl_s"] = next((ttl for ttl in (model.get("ttl"), tree.get("globalTTL")) if _is_ttl(ttl)), 0)
    if isinstance(tree.get("healthCheckTimeout"), int):
        fields["start_timeout_s"] = max(15, tree["healthCheckTimeout"])
    fields |= _filters(name, model, where, expanded, into)
    own = {
        "aliases": [a for a in names if a not in fields.get("faces", {})],
        "description": str(model.get("description") or model.get("name") or ""),
    }
    own = {key: value for key, value in own.items() if value}
    for key, value in model.items():
        if key not in _MODEL_SILENT and not _is_default(key, value):
            into.add_loss(where, f"`{key}` is not translated")
    into.add(name, {**own, **fields, "tier": "warm"})


def _is_ttl(value: Any) -> bool:
    """Whether `value` is a time in seconds; -1 and nothing leave it to the other key."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _without_comments(command: str) -> str:
    return "\n".join(line for line in command.splitlines() if not line.lstrip().startswith("#"))


def _is_default(key: str, value: Any) -> bool:
    if key == "proxy":
        return isinstance(value, str) and bool(re.match(r"https?://(?:127\.0\.0\.1|localhost|\[::1\])[:/]", value))
    if key == "checkEndpoint":
        return value in {"/health", "none"}
    if key == "cmdStop":
        return isinstance(value, str) and bool(re.match(r"\s*(?:docker|podman) stop\b", value))
    return not value


def _filters(name: str, model: Mapping[str, Any], where: str, expanded: Any, into: Imported) -> dict[str, Any]:
    """Fields for request parameters that are removed or set: for the model, and for its further names."""
    filters, fields = _mapping(model.get("filters")), dict[str, Any]()
    strip = filters.get("stripParams", filters.get("strip_params"))
    if isinstance(strip, str) and strip:
        fields["request_strip"] = [word.strip() for word in expanded(strip).split(",") if word.strip()]
    if isinstance(filters.get("setParams"), dict) and filters["setParams"]:
        fields["request_set"] = filters["setParams"]
    by_name = {expanded(other): _mapping(values) for other, values in _mapping(filters.get("setParamsByID")).items()}
    own = by_name.pop(name, {})
    if own:
        fields["request_set"] = {**fields.get("request_set", {}), **own}
    if by_name:
        fields["faces"] = {other: {"request_set": values} if values else {} for other, values in by_name.items()}
    for key in sorted(own):
        if any(key not in values for values in by_name.values()):
            into.add_loss(where, f"`filters.setParamsByID` sets {key} for {name} alone, here for its other names, too")
    for key in filters:
        if key not in {"stripParams", "strip_params", "setParams", "setParamsByID"}:
            into.add_loss(where, f"`filters.{key}` is not translated")
    return fields


def _groups(tree: Mapping[str, Any], names: set[str], preload: set[str], into: Imported) -> None:
    """Set which servers take turns, and which are up from the start.

    Models without a group, and of groups that swap and send all others away (`exclusive`), share one exclusive group; a
    group that swaps only among its members has one of its own; a group that does not swap has none.
    """
    member: dict[str, str | None] = dict.fromkeys(names, SWAP)
    for name, group in _written_groups(tree, into).items():
        swaps, sends = group.get("swap", True) is not False, group.get("exclusive", True) is not False
        persistent = bool(group.get("persistent"))
        for model in map(str, listed(group.get("members"))):
            if model not in names:
                into.add_loss(f"groups.{name}", f"its member {model} is no model")
            member[model] = (SWAP if sends and not persistent else str(name)) if swaps else None
        if not swaps and sends and not persistent:
            into.add_loss(
                f"groups.{name}", "its members run together and send all others away: here they send nobody away"
            )
        if persistent and sends:
            into.add_loss(f"groups.{name}", "sends others away and is never sent away: here it sends nobody away")
    started: set[str] = set()
    for name, fields in into.servers.items():
        original = next((n for n in (name, *fields.get("aliases", [])) if n in member), name)
        group = member.get(original)
        if group:
            fields["exclusive"] = re.sub(r"[^A-Za-z0-9_-]+", "-", group)
        if original not in preload:
            continue
        if group in started:
            into.add_loss("hooks.on_startup", f"{original} cannot be up beside another of its group")
            continue
        fields.update({"tier": "hot"} | ({"default": True} if group else {}))
        started |= {group} if group else set()


def _written_groups(tree: Mapping[str, Any], into: Imported) -> dict[str, Any]:
    """The groups, from the top level and, as newer files have it, from the router's settings."""
    routing = _mapping(tree.get("routing"))
    router = _mapping(routing.get("router"))
    if router.get("use") == "matrix":
        into.add_loss("routing.router", "a matrix is not translated: here one at a time", _LOST["matrix"])
        return {}
    for key in routing:
        if key != "router":
            into.add_loss(f"routing.{key}", "is not translated")
    groups = _mapping(_mapping(router.get("settings")).get("groups"))
    return {name: _mapping(group) for name, group in {**groups, **_mapping(tree.get("groups"))}.items()}


def _mapping(value: Any) -> dict[str, Any]:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def _expand(text: str, macros: Mapping[str, Any], name: str, env: Mapping[str, str], unknown: set[str]) -> str:
    """Expand macros, nested ones too; an undefined one becomes empty and is added to `unknown`."""
    known = {"PORT": "0", "MODEL_ID": name, "PID": "0", **macros}

    def value(match: re.Match[str]) -> str:
        key = match[1]
        if key.startswith("env."):
            found = env.get(key.removeprefix("env."))
        else:
            found = str(known[key]) if key in known else None
        if found is None:
            unknown.add(key)
        return found or ""

    for _ in range(_ROUNDS):
        new = _MACRO.sub(value, text)
        if new == text or len(new) > 100_000:
            break
        text = new
    return text
