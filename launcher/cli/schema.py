"""`launch config --schema [GROUP]`: the JSON Schema of a fleet file or of a group's files, for editors.

All of them lie in `schemas/`, which every shipped and generated YAML names in its modeline:
`python -m launcher.cli.schema schemas` writes them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher.cli.fields import first_paragraph, meanings_of
from launcher.config import schema as shapes
from launcher.config.index import ENTRY_GROUPS
from launcher.errors import ConfigError
from launcher.ir.config import DraftConfig, EngineConfig, FleetConfig, ModelConfig, ModelFileConfig, ServerConfig

_SHORT = (ServerConfig, ModelConfig, ModelFileConfig, EngineConfig, DraftConfig)
"""Records that may be written as a path alone."""
_MORE: dict[str, dict[str, Any]] = {
    "devices": {"const": "auto"},
    "projector": {"type": "string", "description": "The path of the projector of this server's file."},
}
"""Further values that a field of a server may have before the rest is filled in."""


FLEET = "fleet"
"""The schema of a whole fleet: of one file, of a profile, and of `config.yaml`."""
_PARTS = ("hardware", "ports", "routing", "orchestration", "runtime", "deploy")
"""Groups whose file is the value of the config's key of the same name."""
_REFERENCE = {
    "type": "string",
    "pattern": r"\$\{.+\}",
    "description": "A value from elsewhere: ${oc.env:NAME}, ${ports.x}",
}


def schemas() -> dict[str, dict[str, Any]]:
    """Name → schema: of the fleet, and of each group in which one file is one entry or one part."""
    return {name: config_schema(name) for name in (FLEET, *ENTRY_GROUPS, *_PARTS)}


def config_schema(name: str) -> dict[str, Any]:
    """The schema `name` (see `schemas`). Nothing is required: most may be left out, or is written elsewhere.

    Raises KeyError for an unknown name.
    """
    definitions: dict[str, Any] = {"reference": _REFERENCE}
    shape = _shape(name)
    root = _record(shape.struct, definitions) if isinstance(shape, shapes.Record) else _schema(shape, definitions)
    root.setdefault("properties", {})["defaults"] = {"type": "array", "description": "Hydra's defaults list."}
    title = "A launch fleet in one file" if name == FLEET else f"A file of the config group {name}/"
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"launch.{name}-file/v1",
        "title": title,
        **root,
        "$defs": definitions,
    }


def asked_schema(words: Sequence[str]) -> dict[str, Any]:
    """What `launch config --schema WORDS` prints: a group's schema, else the fleet file's. Raises ConfigError."""
    known = (FLEET, *ENTRY_GROUPS, *_PARTS)
    name = words[0] if words else FLEET
    if len(words) > 1 or name not in known:
        asked = " ".join(words)
        note = f"there are {', '.join(known)}"
        raise ConfigError.of("config/unknown-key", f"{asked!r} has no schema", note, key=asked)
    return config_schema(name)


def _shape(name: str) -> shapes.Shape:
    if name == FLEET:
        return shapes.Record(struct=FleetConfig)
    shape = shapes.fields_of(FleetConfig)[ENTRY_GROUPS.get(name, name)].shape
    if name in ENTRY_GROUPS:
        shape = shapes.inner(shape, "ENTRY") or shape
    return shape.options[0] if isinstance(shape, shapes.Either) else shape


def _schema(shape: shapes.Shape, definitions: dict[str, Any]) -> dict[str, Any]:  # noqa: C901 - a line a shape
    match shape:
        case shapes.Text():
            return {"type": "string"}
        case shapes.Flag():
            return _or_reference({"type": "boolean"})
        case shapes.Number(whole=whole, low=low, high=high):
            limits = {word: limit for word, limit in (("minimum", low), ("maximum", high)) if limit is not None}
            return _or_reference({"type": "integer" if whole else "number", **limits})
        case shapes.Size():
            return {"type": ["integer", "string"]}
        case shapes.Choice(options=options):
            return _or_reference({"enum": list(options)})
        case shapes.Many(item=item):
            return _or_reference({"type": "array", "items": _schema(item, definitions)})
        case shapes.Table(value=value):
            return {"type": "object", "additionalProperties": _schema(value, definitions)}
        case shapes.Record(struct=struct):
            if struct.__name__ not in definitions:
                definitions[struct.__name__] = {}
                definitions[struct.__name__] = _record(struct, definitions)
            reference = {"$ref": f"#/$defs/{struct.__name__}"}
            return {"anyOf": [{"type": "string"}, reference]} if struct in _SHORT else reference
        case shapes.Either(options=options, nullable=nullable):
            alternatives = [_schema(option, definitions) for option in options]
            return {"anyOf": [*alternatives, *([{"type": "null"}] if nullable else [])]}
        case shapes.Anything():
            return {}


def _or_reference(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, or `${…}`, which is a string until the config is composed."""
    return {"anyOf": [schema, {"$ref": "#/$defs/reference"}]}


def _record(struct: type[msgspec.Struct], definitions: dict[str, Any]) -> dict[str, Any]:
    properties = {}
    meanings = meanings_of(struct)
    for name, field in shapes.fields_of(struct).items():
        schema = _schema(field.shape, definitions)
        if struct is ServerConfig and name in _MORE:
            schema = {"anyOf": [schema, _MORE[name]]}
        meaning = {"description": meanings[name]} if name in meanings else {}
        properties[name] = {**schema, **meaning}
    return {
        "type": "object",
        "description": first_paragraph(struct),
        "properties": properties,
        "additionalProperties": False,
    }


def main(folder: Path) -> None:
    """Write every schema below `folder`."""
    for name, schema in schemas().items():
        (folder / f"{name}.json").write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
