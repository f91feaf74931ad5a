"""Random hostile strings in every field of every render target: refused, or the file has the structure that it has.

`LAUNCH_FUZZ_EXAMPLES` makes it long, and then systemd itself reads the units, too.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from launcher.errors import has_errors
from launcher.ir.config import (
    ContainerConfig,
    DeployConfig,
    EngineConfig,
    FrontConfig,
    HookConfig,
    RuntimeConfig,
    ServiceConfig,
)
from launcher.ir.plan import FleetPlan, ServicePlan
from launcher.render.fleet import render_fleet
from launcher.render.quoting import control_characters, open_secrets, refused_value
from tests.render.conftest import REPOSITORY, verify
from tests.render.plan_factory import fleet_plan, server_plan
from tests.render.test_manifest import ENGINES

EXAMPLES = int(os.environ.get("LAUNCH_FUZZ_EXAMPLES", "0"))
NASTY = st.text(st.sampled_from("ab/.: \t\n\r\v\f\x00\x1b\x85\u2028\\\"'$%;#{}[]`!~*?=-@&|<>,é\U0001f600"), max_size=12)
LINES = st.sampled_from(
    ["x\nExecStart=/bin/sh", "x\n[Service]\nUser=root", "a: b\nc: d", '"]; polkit.X("', "x' ; id; '", "x\\", "%h"]
)
ROOT = REPOSITORY / "templates"
TEMPLATES = {p.relative_to(ROOT).as_posix(): p.read_text() for p in sorted(ROOT.rglob("*.j2"))}
SECTION = re.compile(r"\[.+\]")


def plan_with(field: str, value: str) -> FleetPlan:
    """Two servers and two services with everything that is written, and `value` at `field`."""

    def at(name: str, usual: str) -> str:
        return value if name == field else usual

    server = server_plan(
        "a",
        model_path=at("model_path", "/models/a.gguf"),
        model=at("model", "smollm2"),
        quantization=at("quantization", "q4_1"),
        aliases=(at("alias", "alias"),),
        roles=(at("role", "role"),),
        extra_args=("--chat-template", at("extra_args", "x")),
        env={"A": at("server.env", "x")},
        request_defaults={"stop": at("request_defaults", "x")},
        slot_save_path=at("slot_save_path", "/var/slots"),
    )
    command = ServiceConfig(
        port=9001,
        command=(at("command[0]", "/usr/bin/web"), at("command[1]", "x")),
        description=at("description", "x"),
        env={"A": at("service.env", "x")},
        health_path=at("health_path", "/health"),
        host=at("service.host", "127.0.0.1"),
    )
    container = ServiceConfig(
        port=9002,
        container=ContainerConfig(
            image=at("image", "localhost/box:1"),
            ports=(at("ports", "9002:80"),),
            volumes=(at("volumes", "/srv:/srv"),),
            args=(at("args", "x"),),
        ),
    )
    deploy = DeployConfig(
        launch=at("launch", "/usr/local/bin/launch"),
        targets=("llama_swap", "router", "prometheus", "alerts", "grafana"),
    )
    front = FrontConfig(
        api_key_file=at("api_key_file", "/etc/keys"),
        tls_cert_file=at("tls_cert_file", "/etc/cert"),
        tls_key_file=at("tls_key_file", "/etc/key"),
        host=at("front.host", "127.0.0.1"),
    )
    services = {"web": command, "box": container}
    return fleet_plan(
        server,
        server_plan("b", port=8081),
        deploy=deploy,
        runtime=RuntimeConfig(front=front),
        services=tuple(ServicePlan(name=n, port=c.port or 0, config=c) for n, c in services.items()),
    )


FIELDS = (
    *("model_path", "model", "quantization", "alias", "role", "extra_args", "server.env", "request_defaults", "args"),
    *("slot_save_path", "command[0]", "command[1]", "description", "service.env", "health_path", "service.host"),
    *("image", "ports", "volumes", "launch", "api_key_file", "tls_cert_file", "tls_key_file", "front.host"),
)


def files_of(plan: FleetPlan, templates: dict[str, str]) -> dict[str, str] | None:
    """Path → text; None where the values are refused."""
    try:
        rendered = render_fleet(plan, ENGINES, templates, "0")
    except UnicodeEncodeError:
        return None
    return None if has_errors(rendered.findings) else {f.path: f.text for f in rendered.deployment.files}


def structure(path: str, text: str) -> Any:
    """What a reader of `path` sees besides values: sections and keys, in their order; the reader must take it."""
    if path.endswith(".json"):
        return keys(json.loads(text))
    if path.endswith((".yaml", ".yml")):
        return keys(yaml.safe_load(text))
    if path.endswith(".sh"):
        subprocess.run(["sh", "-n"], input=text.encode(), check=True, capture_output=True)
        return [line.split(" ")[0] for line in text.splitlines()[:4]]
    if path.endswith(".rules"):
        return text  # no value of these fields stands there
    joined = text.replace("\\\n", "")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029]", joined)
    plain = [line for line in joined.split("\n") if line and line[0] not in "#;"]
    return [line if SECTION.fullmatch(line) else line.partition("=")[0].strip() for line in plain]


def keys(value: Any) -> Any:
    """Names of mappings below `value`, and how long lists are; scalars by their kind."""
    if isinstance(value, dict):
        return sorted((str(k), keys(v)) for k, v in value.items() if k not in {"argv_digest", "names", "aliases"})
    return [keys(item) for item in value] if isinstance(value, list) else type(value).__name__


@functools.cache
def expected(field: str) -> dict[str, Any]:
    """The structure of every file with a harmless value at `field`."""
    files = files_of(plan_with(field, "/x"), TEMPLATES) or files_of(plan_with(field, "9:9"), TEMPLATES)
    assert files is not None
    return {path: structure(path, text) for path, text in files.items()}


@settings(max_examples=EXAMPLES or 6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(FIELDS), NASTY.map(lambda text: f"/x{text}") | LINES | NASTY.filter(bool))
@example("model_path", "/x\x85:")
@example("server.env", "\u2028")
def test_hostile_values_stay_values(field: str, value: str) -> None:
    """H3: whatever stands in a field, no line, key, section or command more comes of it."""
    files = files_of(plan_with(field, value), TEMPLATES)
    for path, text in (files or {}).items():
        seen = structure(path, text)
        if not path.endswith(("llama-swap.yaml", "router.ini")):  # which leave out what they cannot say
            assert seen == expected(field)[path], path


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("launch", "deploy.launch"),
        ("api_key_file", "runtime.front.api_key_file"),
        ("command[0]", "services.web.command.0"),
        ("image", "services.box.container.image"),
        ("ports", "services.box.container.ports.0"),
        ("volumes", "services.box.container.volumes.0"),
        ("health_path", "services.web.health_path"),
        ("service.host", "services.web.host"),
    ],
)
def test_line_breaks_are_refused_where_they_are_written(field: str, key: str) -> None:
    """H3: with the key of the value; arguments and variables, which are quoted, may have them."""
    for text in ("\nExecStart=/bin/sh", "\r", "\x1b[31m", "\u2028x", "\\"):
        found = [*control_characters(plan_with(field, f"/x{text}"))]
        assert [(f.code, f.key, f.severity) for f in found] == [("render/bad-character", key, "error")]
    assert [*control_characters(plan_with("service.env", "a\nb"))] == []
    assert [*control_characters(plan_with(field, "/x é \\ $ %"))] == []


def test_a_plan_with_a_line_break_is_refused_once() -> None:
    """Said at its key, not once more for each file."""
    found = render_fleet(plan_with("launch", "/x\nUser=root"), ENGINES, TEMPLATES, "0").findings
    assert [(f.code, f.key) for f in found if f.severity == "error"] == [("render/bad-character", "deploy.launch")]
    unseen = refused_value("a\nb")
    assert unseen is not None
    assert unseen.code == "render/bad-character"
    assert refused_value("a \\\n    b") is None


@pytest.mark.parametrize("name", ["HF_TOKEN", "LLAMA_API_KEY", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY"])
def test_secrets_are_never_in_generated_files(name: str) -> None:
    """H4: in `env:` of a service, in its arguments; a name of a file is none."""
    plan = plan_with("", "")

    def codes(**changes: Any) -> set[str]:
        config = msgspec.structs.replace(plan.services[0].config, **changes)
        whole = msgspec.structs.replace(plan.config, services={"web": config})
        return {f.code for f in open_secrets(msgspec.structs.replace(plan, config=whole))}

    assert codes(env={name: "s3cret"}) == {"render/open-secret"}
    assert codes(env={f"{name}_FILE": "/run/secret", "MAX_TOKENS": "5", name: ""}) == set()
    assert codes(command=("/usr/bin/web", "--api-key", "s3cret")) == {"render/open-secret"}
    assert codes(command=("/usr/bin/web", "--api-key-file", "/run/key")) == set()


@settings(max_examples=EXAMPLES // 10 or 1, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(FIELDS), NASTY)
def test_systemd_reads_what_was_meant(tmp_path_factory: pytest.TempPathFactory, field: str, text: str) -> None:
    """Units with hostile values, as systemd-analyze itself takes them: no unknown key, nothing ignored."""
    files = files_of(plan_with(field, f"/x{text}"), TEMPLATES)
    if files is None:
        return
    units = {p.rpartition("/")[2]: t for p, t in files.items() if p.startswith("systemd/") and p.endswith(".service")}
    _, said = verify(Path(tmp_path_factory.mktemp("units")), units)
    assert "Unknown key" not in said
    assert "Unknown section" not in said
    assert "Unbalanced quoting" not in said


@pytest.mark.parametrize("mark", "@-:+!|")
def test_a_name_that_systemd_takes_for_rights(mark: str) -> None:
    """What stands before a program in a unit says how it is run (`+`: with all rights), in quotes, too."""
    plan = plan_with("launch", f"{mark}launch")
    engines = {"default": EngineConfig(binary=f"{mark}llama-server", dialect="b10434")}
    config = msgspec.structs.replace(plan.config, engines=engines)
    config = msgspec.structs.replace(config, services={"web": ServiceConfig(port=9001, command=(f"{mark}web", "-x"))})
    found = control_characters(msgspec.structs.replace(plan, config=config))
    assert {f.key for f in found} == {"deploy.launch", "engines.default.binary", "services.web.command.0"}
    assert all(f.code == "render/bad-character" for f in found)


def test_what_no_program_can_be_given() -> None:
    """A NUL in what services and hooks are run with: a unit with it is no unit, and nothing can be started with it."""
    services = {
        "web": ServiceConfig(port=9001, command=("/usr/bin/web", "a\0b"), env={"A": "\0"}),
        "box": ServiceConfig(port=9002, container=ContainerConfig(image="ocr:1", args=("-x", "\0"))),
    }
    hooks = {"after": HookConfig(command=("/bin/true", "\0"))}
    plan = plan_with("launch", "/x")
    config = msgspec.structs.replace(plan.config, services=services, hooks=hooks)
    found = control_characters(msgspec.structs.replace(plan, config=config))
    keys = {"services.web.command.1", "services.web.env.A", "services.box.container.args.1", "hooks.after.command.1"}
    assert {f.key for f in found} == keys
