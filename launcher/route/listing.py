"""Models as clients list them: fields of OpenAI, Anthropic and llama.cpp, and our own. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from launcher.ir.fleet import RouteTarget, RoutingTable
from launcher.ir.live import ServerState

StateOf = Callable[[str], ServerState]
STATUS: dict[ServerState, str] = {
    "ready": "loaded",
    "sleeping": "sleeping",
    "starting": "loading",
    "backoff": "loading",
    "stopping": "unloaded",
    "stopped": "unloaded",
    "failed": "unloaded",
}
"""A state as llama.cpp's router calls it."""


def n_ctx(unit: RouteTarget) -> int:
    """Tokens that one request may have, called context size by clients."""
    return unit.n_ctx_shared or unit.n_ctx_per_slot


def model_entry(unit: RouteTarget, state: ServerState, created: int, name: str = "") -> dict[str, Any]:
    """One server in a list of models; `name`: the name asked for, where it is not the server's own.

    `meta`, `architecture`, `status`, `tags` and `aliases` (all names) are llama.cpp's, `max_model_len` is vLLM's,
    `context_length` OpenRouter's.
    """
    status = {"value": STATUS[state], **({"failed": True} if state == "failed" else {})}
    face, own, context = unit.faces.get(name), unit.id or unit.name, n_ctx(unit)
    meta = {"n_ctx": context, "n_ctx_train": unit.n_ctx_train, "n_params": unit.n_params, "size": unit.size_bytes}
    return {
        "id": name or own,
        "object": "model",
        "created": created,
        "owned_by": "llamacpp" if unit.outside is None else unit.name,
        "type": "model",
        "display_name": name or own,
        "created_at": "1970-01-01T00:00:00Z",
        **({"context_length": context, "max_model_len": context} if context else {}),
        "meta": {key: value for key, value in meta.items() if value},
        "architecture": {
            "input_modalities": list(unit.modalities),
            "output_modalities": [] if unit.embedding else ["text"],
        },
        "status": status,
        **({"face_of": unit.name, "description": face.description} if face is not None else {}),
        "model": unit.model,
        "roles": list(unit.roles),
        "tags": list(unit.roles),
        "aliases": list(dict.fromkeys((own, *unit.aliases))),
        "state": state,
        "slots": unit.slots,
        "n_ctx_per_slot": unit.n_ctx_per_slot,
        **({"n_ctx_shared": unit.n_ctx_shared} if unit.n_ctx_shared else {}),
        "modalities": list(unit.modalities),
        "embedding": unit.embedding,
    }


def _named_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry once more as llama-server lists it beside, for clients of Ollama's list."""
    more = ["multimodal"] if len(entry["modalities"]) > 1 else []
    capabilities = ["embedding"] if entry["embedding"] else ["completion", *more]
    return {"name": entry["id"], "model": entry["id"], "type": "model", "capabilities": capabilities}


def auto_entry(name: str, created: int) -> dict[str, Any]:
    """A name for which the orchestrator chooses the server."""
    entry = {"id": name, "object": "model", "created": created, "owned_by": "launch", "type": "model"}
    return {**entry, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}


def models_list(
    table: RoutingTable, state_of: StateOf, created: int, auto: Iterable[str], may_ask: Callable[[str, str], bool]
) -> dict[str, Any]:
    """Every server that the caller may ask by some name, in the table's order, then `auto`, by the same rule.

    Each server's faces follow it, and with `list_aliases` its aliases. The list fields of all APIs; there is no second
    page. `may_ask` is called with a name and the server behind it.
    """
    named = {**table.names, **{pool.name: pool.servers for pool in table.pools}}
    data = []
    for name, unit in table.targets.items():
        state = state_of(name)
        if may_ask(name, name) or any(may_ask(asked, name) for asked, servers in named.items() if name in servers):
            data.append(model_entry(unit, state, created))
        more = (*unit.faces, *(unit.aliases if table.front.list_aliases else ()))
        own = (a for a in more if a != unit.id and named.get(a, ())[:1] == (name,) and may_ask(a, name))
        data += [model_entry(unit, state, created, further) for further in own]
    data += [auto_entry(name, created) for name in sorted(auto) if may_ask(name, name)]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    models = [_named_entry(entry) for entry in data if "modalities" in entry]
    return {"object": "list", "data": data, "models": models, "has_more": False, **ends}


def local_props(table: RoutingTable, unit: RouteTarget | None, state: ServerState) -> bytes | None:
    """What the front answers to `GET /props`: for no model in a fleet of several, and for one that does not run.

    The first as llama.cpp's router says it, no one server's values; the second as far as it is known, and nobody is
    woken. None: the server itself answers.
    """
    if unit is None:
        shown: dict[str, Any] = {
            "role": "router",
            "max_instances": len(table.targets),
            "models_autoload": True,
            "model_alias": table.deployment,
            "model_path": "none",
            "default_generation_settings": {"params": None, "n_ctx": 0},
            "total_slots": sum(target.slots for target in table.targets.values()),
        }
    elif state in ("stopped", "stopping") or unit.outside is not None:
        shown = {
            "default_generation_settings": {"params": None, "n_ctx": n_ctx(unit)},
            "total_slots": unit.slots,
            "model_alias": unit.name,
            "model_path": unit.model,
            "modalities": {"vision": "image" in unit.modalities, "audio": "audio" in unit.modalities},
            "is_sleeping": unit.outside is None,
        }
    else:
        return None
    return msgspec.json.encode(shown)
