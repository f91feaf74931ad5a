"""Documents: bytes both ways, what is refused, schemas, and what a new manifest changes."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.engine import recorded
from launcher.errors import ConfigError, Finding, Fix, Location
from launcher.ir.answers import DOCUMENTS, json_schema
from launcher.ir.config import ServiceConfig, UpstreamConfig
from launcher.ir.documents import InspectDocument, plan_document
from launcher.ir.fleet import FleetManifest, ServerUnit
from launcher.ir.live import FleetStatus
from launcher.ir.plan import ServicePlan
from launcher.manifest import (
    argv_changes,
    argv_digest,
    decode_fleet,
    decode_routes,
    diff_manifests,
    encode_document,
)
from launcher.render import render_commands
from launcher.render.fleet import Rendered, render_fleet
from tests.render.plan_factory import MIB, fleet_plan, server_plan

ENGINES = {"default": ("/opt/llama-server", recorded("b10434"))}
FINDING = Finding(
    code="plan/ram-over-budget",
    severity="error",
    key="servers.a",
    message="m",
    notes=("n",),
    fixes=(Fix(override="a=b", effect="saves"),),
    location=Location(file="conf/x.yaml", line=6, column=10),
)


@pytest.fixture(scope="module")
def rendered(request: pytest.FixtureRequest) -> Rendered:
    """A fleet of two."""
    plan = fleet_plan(server_plan("a"), server_plan("b", port=8081, request_defaults={"stop": ["é"], "n": None}))
    return render_fleet(plan, ENGINES, request.getfixturevalue("templates"), "0.1.0")


def changed(manifest: FleetManifest, **by_name: dict[str, Any]) -> FleetManifest:
    """`manifest` with fields of some servers replaced."""
    servers = tuple(msgspec.structs.replace(s, **by_name.get(s.name, {})) for s in manifest.servers)
    return msgspec.structs.replace(manifest, servers=servers)


def refused(data: bytes) -> Finding:
    """The finding that decoding `data` as fleet.json ends with."""
    with pytest.raises(ConfigError) as caught:
        decode_fleet(data, "generated/x/fleet.json")
    (finding,) = caught.value.findings
    assert finding.message.startswith("generated/x/fleet.json cannot be used")
    return finding


def test_round_trip(rendered: Rendered) -> None:
    """Both documents come back equal, from bytes that are the same every time."""
    fleet, routes = encode_document(rendered.manifest), encode_document(rendered.routes)
    assert decode_fleet(fleet) == rendered.manifest
    assert decode_routes(routes) == rendered.routes
    assert encode_document(decode_fleet(fleet)) == fleet
    assert encode_document(decode_routes(routes)) == routes


def test_bytes_are_for_people_too(rendered: Rendered) -> None:
    """Indented, keys sorted, one newline at the end."""
    text = encode_document(rendered.manifest).decode()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def test_torn_files(rendered: Rendered) -> None:
    """Cut anywhere, empty, not UTF-8."""
    data = encode_document(rendered.manifest)
    for cut in (b"", data[:1], data[: len(data) // 2], data[:-3], b"\xff\xfe"):
        assert refused(cut).code == "manifest/unreadable"


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        ('{"schema":"launch.fleet/v2"}', "other-version", "it is launch.fleet/v2, this launch reads launch.fleet/v1"),
        ('{"schema":"launch.fleet/v0"}', "other-version", "launch.fleet/v0"),
        ('{"schema":"launch.routes/v1"}', "foreign", "launch.routes/v1"),
        ('{"schema":7}', "foreign", "7"),
        ("[]", "foreign", "no document of ours"),
        ("{}", "foreign", "no document of ours"),
        ('{"schema":"launch.fleet/v1"}', "invalid", "missing required field"),
    ],
)
def test_foreign_old_and_incomplete(text: str, code: str, part: str) -> None:
    """Each is named for what it is, with the way to get a good one."""
    finding = refused(text.encode())
    assert finding.code == f"manifest/{code}"
    assert part in finding.message
    assert "launch render" in finding.notes[0]


def test_a_value_of_the_wrong_type_is_named(rendered: Rendered) -> None:
    """The path to the value is in the message."""
    plain = json.loads(encode_document(rendered.manifest))
    plain["servers"][1]["port"] = "eighty"
    assert "$.servers[1].port" in refused(json.dumps(plain).encode()).message


def test_routes_are_not_a_fleet(rendered: Rendered) -> None:
    """The two files of a deployment cannot be taken for each other."""
    with pytest.raises(ConfigError):
        decode_routes(encode_document(rendered.manifest))


@given(st.lists(st.text()), st.lists(st.text()))
def test_digests_tell_command_lines_apart(a: list[str], b: list[str]) -> None:
    """Equal exactly for equal words (no word holds NUL), surrogates included."""
    a, b = ([w.replace("\0", "") for w in words] for words in (a, b))
    assert (argv_digest(a) == argv_digest(b)) == (a == b)
    assert argv_digest(["ab"]) != argv_digest(["a", "b"])


# --- schemas -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTS)
def test_schemas_are_valid_and_named(name: str) -> None:
    """2020-12, with the document's name as a constant."""
    schema = json_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"urn:{name}"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema": "launch.other/v1"}, schema)


def test_unknown_schema() -> None:
    """A KeyError, for the caller to say which there are."""
    with pytest.raises(KeyError):
        json_schema("launch.nothing/v1")


def test_documents_obey_their_schemas(rendered: Rendered) -> None:
    """What is written is what is published."""
    plan = fleet_plan(server_plan("a"), findings=(FINDING,))
    commands, _ = render_commands(plan, ENGINES)
    inspect = InspectDocument(
        file="x.gguf",
        architecture="llama",
        parameters=1,
        tensors=2,
        file_bytes=3,
        context_length=4,
        n_ctx=5,
        n_ctx_per_slot=6,
        memory=server_plan().memory,
    )
    status = FleetStatus(deployment="d", input_digest="x", runtime_pid=None, front=None, ready=False, processes=())
    documents: list[dict[str, Any]] = [
        json.loads(encode_document(rendered.manifest)),
        json.loads(encode_document(rendered.routes)),
        plan_document(plan, {n: c.argv for n, c in commands.items()}, {n: c.env for n, c in commands.items()}),
        json.loads(encode_document(inspect)),
        json.loads(encode_document(status)),
    ]
    for document in documents:
        jsonschema.validate(json.loads(json.dumps(document)), json_schema(document["schema"]))


def test_the_plan_lists_who_somebody_else_runs() -> None:
    """Upstreams with what they are asked for and take here, services with their VRAM; neither where there is none."""
    plan = fleet_plan(server_plan("a"))
    upstream = UpstreamConfig(
        url="http://127.0.0.1:9/v1", models={"big": "vendor/big"}, aliases=("x",), vram_bytes={"cuda0": MIB}
    )
    config = msgspec.structs.replace(plan.config, upstreams={"cloud": upstream})
    beside = ServicePlan(name="w", port=9001, config=ServiceConfig(command=("x",), vram_bytes={"cuda0": MIB}))
    plan = msgspec.structs.replace(plan, config=config, services=(beside,))
    document = json.loads(json.dumps(plan_document(plan, {"a": ()}, {})))
    jsonschema.validate(document, json_schema(document["schema"]))
    assert document["upstreams"] == [
        {
            "name": "cloud",
            "url": upstream.url,
            "models": ["big", "x"],
            "slots": 16,
            "ram_bytes": 0,
            "vram_bytes": {"cuda0": MIB},
        }
    ]
    assert document["services"] == [{"name": "w", "port": 9001, "ram_bytes": 0, "vram_bytes": {"cuda0": MIB}}]


def test_the_plan_document_is_the_contract() -> None:
    """Exactly the keys of CONTRACT, at every level, and findings as CONTRACT prints them."""
    plan = fleet_plan(server_plan("a"), findings=(FINDING,))
    document = json.loads(json.dumps(plan_document(plan, {"a": ("x", "--y")}, {"a": {"K": "v"}})))
    assert set(document) == {
        *("schema", "deployment", "input_digest", "hardware", "servers", "services", "totals", "proof", "findings"),
    }
    assert document["hardware"]["name"] == "epyc"
    device = {"name", "kind", "capacity_bytes", "budget_bytes", "planned_bytes", "peak_bytes", "nodes"}
    assert set(document["hardware"]["devices"][0]) == device
    (server,) = document["servers"]
    assert set(server) == {
        *("name", "roles", "port", "tier", "model", "quantization", "slots", "n_ctx", "n_ctx_per_slot"),
        *("argv", "env", "memory", "source"),
    }
    assert (server["argv"], server["env"]) == (["x", "--y"], {"K": "v"})
    figures = "model kv recurrent output compute draft projector overhead committed peak growth file locked"
    assert set(server["memory"][0]) == {"device", "shared_with", *(f"{f}_bytes" for f in figures.split())}
    assert set(document["totals"]) == {"hot_ram_bytes", "warm_ram_bytes", "kv_bytes", "threads"}
    assert document["findings"] == [
        {
            "code": "plan/ram-over-budget",
            "severity": "error",
            "key": "servers.a",
            "message": "m",
            "notes": ["n"],
            "fixes": [{"override": "a=b", "effect": "saves"}],
            "location": {"file": "conf/x.yaml", "line": 6, "column": 10},
        }
    ]
    assert plan_document(plan, {"a": ()}, {}, findings=())["findings"] == ()


# --- differences ---------------------------------------------------------------------------------------------


def test_nothing_changed(rendered: Rendered) -> None:
    """Everything is kept."""
    diff = diff_manifests(rendered.manifest, rendered.manifest)
    assert (diff.started, diff.stopped, diff.restarted, diff.kept) == ((), (), {}, ("a", "b"))


def test_started_and_stopped(rendered: Rendered) -> None:
    """By name, both ways."""
    one = msgspec.structs.replace(rendered.manifest, servers=rendered.manifest.servers[:1])
    assert diff_manifests(one, rendered.manifest).started == ("b",)
    assert diff_manifests(rendered.manifest, one).stopped == ("b",)


def test_a_changed_word_restarts_and_says_which(rendered: Rendered) -> None:
    """Each flag, what it was, what it becomes."""
    argv = tuple("4096" if w == "2048" else w for w in rendered.manifest.servers[0].argv)
    diff = diff_manifests(rendered.manifest, changed(rendered.manifest, a={"argv": argv}))
    assert diff.restarted == {"a": "argv: --ctx-size 2048 → 4096, --batch-size 2048 → 4096"}
    assert diff.kept == ("b",)
    longer = changed(rendered.manifest, a={"argv": (*rendered.manifest.servers[0].argv, "--perf")})
    assert diff_manifests(rendered.manifest, longer).restarted == {"a": "argv: --perf absent → set"}


def test_the_arguments_that_differ_are_named() -> None:
    """Changed, added, removed, another binary; negative numbers are values."""
    old = ("/a/llama-server", "-c", "4096", "--mlock", "--temp", "-1")
    new = ("/b/llama-server", "-c", "8192", "--temp", "-1", "--jinja")
    assert argv_changes(old, old) == []
    assert argv_changes(old, new) == [
        "binary /a/llama-server → /b/llama-server",
        "-c 4096 → 8192",
        "--mlock set → absent",
        "--jinja absent → set",
    ]
    assert argv_changes(("x", "-a", "-b"), ("x", "-b", "-a")) == ["the same arguments in another order"]


def test_what_the_runtime_takes_over_restarts_nothing(rendered: Rendered) -> None:
    """Roles, timeouts, tier and defaults live in our process; environment and port do not."""
    own = {"roles": ("x",), "idle_timeout_s": 5.0, "request_defaults": {"a": 1}, "fatal": False}
    assert diff_manifests(rendered.manifest, changed(rendered.manifest, a=own)).restarted == {}
    theirs = changed(rendered.manifest, a={"env": {"A": "1"}, "port": 9000})
    assert diff_manifests(rendered.manifest, theirs).restarted == {"a": "env; port"}


@given(st.data())
def test_every_process_is_in_exactly_one_list(data: st.DataObject) -> None:
    """started, stopped, restarted and kept divide the names of both manifests."""
    names = [data.draw(st.sets(st.sampled_from("abcd"))) for _ in range(2)]
    old, new = (bare_manifest({n: data.draw(st.sampled_from(["x", "y"])) for n in sorted(some)}) for some in names)
    diff = diff_manifests(old, new)
    listed = [*diff.started, *diff.stopped, *diff.restarted, *diff.kept]
    assert sorted(listed) == sorted(names[0] | names[1])


def bare_manifest(argv0: dict[str, str]) -> FleetManifest:
    """A manifest of servers that differ in argv[0] only."""
    plan = fleet_plan(*(server_plan(name) for name in argv0))
    from launcher.render.fleet_manifest import fleet_manifest

    manifest, _ = fleet_manifest(plan, render_commands(plan, ENGINES)[0], "0.1.0")
    servers: tuple[ServerUnit, ...] = tuple(msgspec.structs.replace(s, argv=(argv0[s.name],)) for s in manifest.servers)
    return msgspec.structs.replace(manifest, servers=servers)
