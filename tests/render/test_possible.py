"""A manifest that somebody made by hand: whatever becomes a path, a unit or a timer is judged where it is decoded."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import ConfigError
from launcher.ir.fleet import RouteTarget
from launcher.manifest import decode_fleet, decode_routes
from tests.route.fleet import table, target
from tests.supervise.conftest import manifest, unit

FLEET = msgspec.to_builtins(
    manifest(
        unit("a", ("/bin/true",), 8123, "/m"),
        unit("b", ("/bin/true",), 8124, "/m"),
        unit("c", ("/bin/true",), 0, "/m", host="/run/launch-c/http.sock"),
    )
)
ROUTES = msgspec.to_builtins(table(target("m", 8123)))


def changed(document: dict[str, Any], path: str, value: Any) -> bytes:
    """`document` with the value at `path` (`servers.0.port`) replaced."""
    copy = msgspec.json.decode(msgspec.json.encode(document))
    place: Any = copy
    *way, last = path.split(".")
    for step in way:
        place = place[int(step) if step.isdecimal() else step]
    place[int(last) if last.isdecimal() else last] = value
    return msgspec.json.encode(copy)


HAND_MADE = (
    *(("deployment", value) for value in ("../../../victim", "", ".", "a/b", "a\nb", "a\0b", "x" * 300)),
    *(("servers.0.name", value) for value in ("../x", "a.rung1", "b", "", "-x", "a b", "a\nExecStart=/bin/sh")),
    *(("servers.0.port", value) for value in (-1, 65536, 1 << 70)),
    *(("servers.0.start_timeout_s", value) for value in (-1, 1e12, "soon", 1e308)),
    *(("servers.0.argv", value) for value in ([], ["/bin/true", "a\0b"], "ls")),
    *(("servers.0.env", value) for value in ({"A=B": "x"}, {"": "x"}, {"A": "x\0"}, {"A\n": ""})),
    *(("servers.0.memory.0.peak_bytes", value) for value in (-1, 1 << 63)),
    *(("servers.0.host", value) for value in ("127.0.0.1\r\nX: y", "\0", "/run/launch-a/http.sock", "/etc/shadow")),
    *(("servers.2.host", value) for value in ("/etc/shadow", "/run/../a.sock", "/run/a b.sock", f"/{'x' * 200}.sock")),
    ("servers.2.port", 1),
    *(("supervisor.max_parallel_starts", value) for value in (0, -3)),
    *(("supervisor.log_files", value) for value in (0, -1)),
    ("servers.0.oom_score_adjust", -1001),
    ("servers.0.slot_save_path", "/x\0"),
)


@pytest.mark.parametrize(("path", "value"), HAND_MADE)
def test_what_render_never_writes_is_refused(path: str, value: Any) -> None:
    """H21: a sentence that names the place, never a traceback and never a path outside."""
    decode_fleet(msgspec.json.encode(FLEET))
    with pytest.raises(ConfigError) as refused:
        decode_fleet(changed(FLEET, path, value))
    assert refused.value.findings[0].code == "manifest/invalid"
    assert "fleet.json cannot be used" in refused.value.findings[0].message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("deployment", "../x"),
        ("targets.m.port", -1),
        ("targets.m.host", "/run/launch/control.sock"),
        ("targets.m.name", "n"),
        ("targets.m.request_timeout_s", -1),
        ("names", {"m": ["nobody"]}),
        ("front.port", 70000),
        ("front.host", "0.0.0.0\r\n"),
        ("front.max_body_bytes", -1),
        ("front.api_key_file", "/k\0"),
        ("breaker.failures", 0),
        ("orchestration", {"workers": ["m"]}),
        ("orchestration", {"router": "m", "worker": ["m"]}),
        ("orchestration", {"router": "m", "router_timeout_s": -1}),
    ],
)
def test_routes_are_judged_alike(path: str, value: Any) -> None:
    """The same for `routes.json`."""
    decode_routes(msgspec.json.encode(ROUTES))
    with pytest.raises(ConfigError) as refused:
        decode_routes(changed(ROUTES, path, value))
    assert refused.value.findings[0].code == "manifest/invalid"


@pytest.mark.parametrize("deep", [b"[" * 200_000, b'{"schema":"launch.fleet/v1","x":' + b"[" * 200_000])
def test_deep_json_is_a_sentence(deep: bytes) -> None:
    """Nested deeper than any stack."""
    with pytest.raises(ConfigError) as refused:
        decode_fleet(deep)
    assert refused.value.findings[0].code == "manifest/unreadable"


@given(st.sampled_from(sorted(RouteTarget.__struct_fields__)), st.none() | st.integers() | st.text() | st.floats())
def test_any_value_is_taken_or_a_sentence(field: str, value: Any) -> None:
    """Nothing but ConfigError comes out."""
    with contextlib.suppress(ConfigError):
        assert decode_routes(changed(ROUTES, f"targets.m.{field}", value)).targets
