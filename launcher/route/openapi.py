"""The description of the control API, OpenAPI 3.1, served at `/v1/launch/openapi.json`. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.ir.live import FleetStatus

_NAMES = {"type": "array", "items": {"type": "string"}, "default": []}
_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_REF = "#/components/schemas/"


def openapi(version: str, bodies: dict[str, type[msgspec.Struct]], max_lines: int) -> dict[str, Any]:
    """The OpenAPI document. `bodies`: request bodies by operation; `max_lines`: limit of `lines` for `logs`."""
    _, schemas = msgspec.json.schema_components((FleetStatus, *bodies.values()), ref_template=_REF + "{name}")
    schemas["Error"] = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
            }
        },
    }
    stopped = {
        "type": "object",
        "required": ["stopped", "all"],
        "properties": {"stopped": _NAMES, "all": {"type": "boolean"}},
    }
    changes = ("started", "stopped", "restarted", "kept")
    causes = {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "description": "Why, of what did not come up.",
    }
    reloaded = {
        "type": "object",
        "required": list(changes),
        "properties": {**dict.fromkeys(changes, _NAMES), "failed": causes},
    }
    log = [
        {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}},
        _query("lines", {"type": "integer", "minimum": 1, "maximum": max_lines, "default": 200}),
        _query("follow", {"type": "string", "enum": ["0", "1", "false", "true"], "default": "0"}),
    ]
    return {
        "openapi": "3.1.0",
        "info": {"title": "launch control API", "version": version},
        "paths": {
            "/v1/launch/status": {"get": _operation("status", "Every process now", _json(_ref("FleetStatus")), ())},
            "/v1/launch/stop": {
                "post": _operation("stop", "Stop servers, or everything", _json(stopped), (400, 404, 409, 413))
                | _takes(bodies["stop"])
            },
            "/v1/launch/reload": {
                "post": _operation("reload", "Take over a deployment", _json(reloaded), (400, 404, 409, 413))
                | _takes(bodies["reload"])
            },
            "/v1/launch/logs/{name}": {
                "get": _operation("logs", "The end of a log", _TEXT, (400, 404)) | {"parameters": log}
            },
        },
        "components": {"schemas": schemas},
    }


def _operation(name: str, summary: str, answer: dict[str, Any], errors: tuple[int, ...]) -> dict[str, Any]:
    failures = {str(code): {"description": "refused", "content": _json(_ref("Error"))} for code in errors}
    responses = {"200": {"description": "done", "content": answer}, **failures}
    return {"operationId": name, "summary": summary, "responses": responses}


def _takes(body: type[msgspec.Struct]) -> dict[str, Any]:
    return {"requestBody": {"required": False, "content": _json(_ref(body.__name__))}}


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF + name}
