"""The JSON Schemas of fleet files and config groups take what the compiler takes; every YAML names its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from launcher.author import Machine, MemoryBudget, candidates, choose, fleet_text
from launcher.cli.schema import FLEET, config_schema, schemas
from launcher.files import packaged_dir
from tests.author.facts import GIB, on_disk
from tests.cli.conftest import Cli

GOOD = """\
defaults: [{/server: [assistant]}, _self_]
engines: {default: /opt/llama-server}
models: {q: /m/q.gguf, r: {files: {q8_0: /m/r.gguf}}}
runtime: {front: {port: 9000}}
servers:
  chat: ~/m/x.gguf
  three: {file: x.gguf, slots: "${ports.three}", load_mode: "${oc.env:MODE}"}
  look: {file: a.gguf, projector: p.gguf, devices: auto, draft: d.gguf, ttl_s: 600}
  cards: {model: q, devices: [cuda0], n_gpu_layers: all, projector: true, exclusive: turns}
waive: [cpu/oversubscribed, {plan/slot-context: short texts}]
"""


MODELINE = re.compile(r"^# yaml-language-server: \$schema=(.*)$", re.MULTILINE)
CONF, SCHEMAS = packaged_dir("conf"), packaged_dir("schemas")
SHIPPED = sorted(CONF.rglob("*.yaml"))


def errors(text: str, schema: dict[str, Any] | None = None) -> list[str]:
    """What a validator says of a file."""
    document: Any = yaml.safe_load(text)
    validator = jsonschema.Draft202012Validator(schema or config_schema(FLEET))
    return [f"{e.json_path}: {e.message}" for e in validator.iter_errors(document)]


def test_what_lies_in_schemas_is_current() -> None:
    """`python -m launcher.cli.schema schemas` was run after the last change of a config type."""
    made = {f"{name}.json": json.dumps(schema, indent=1) + "\n" for name, schema in schemas().items()}
    assert {path.name: path.read_text(encoding="utf-8") for path in SCHEMAS.iterdir()} == made
    for schema in schemas().values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(CONF).as_posix())
def test_every_shipped_file_names_its_schema_and_obeys_it(path: Path) -> None:
    """The modeline leads to the schema of the file's group, from where the file lies."""
    text = path.read_text(encoding="utf-8")
    (named,) = MODELINE.findall(text)
    schema = (path.parent / named).resolve()
    group = path.relative_to(CONF).parts[0]
    assert schema == SCHEMAS / ("fleet.json" if group in {"profile", "config.yaml"} else f"{group}.json")
    assert errors(text, json.loads(schema.read_text(encoding="utf-8"))) == []


def test_generated_files_name_the_schema(cli: Cli) -> None:
    """What `import` and `config --yaml` write; `init` and `add` have it in their own tests."""
    (cli.home / "b.sh").write_text("llama-server -m b.gguf\n")
    for words in (("import", "b.sh", "--dry-run"), ("config", "--yaml", *cli.dev)):
        text = cli.run(*words).stdout
        assert MODELINE.findall(text.splitlines()[0]) == [str(SCHEMAS / "fleet.json")]
        assert errors(text) == []


def test_what_may_be_written() -> None:
    """Short forms, long forms, and what `init` writes."""
    assert errors(GOOD) == []
    chosen = choose(candidates([on_disk("/m/a.gguf")]), MemoryBudget(cards=0, ram=64 * GIB), lambda *_: GIB)
    assert errors(fleet_text(chosen, Machine(hardware="x", engine="y", binary="/z"))) == []


@pytest.mark.parametrize(
    "text",
    [
        "servrs: {}",
        "servers: {a: {file: x, slotz: 1}}",
        "servers: {a: {n_gpu_layers: most}}",
        "servers: {a: {slots: 0}}",
        "ports: {a: 70000}",
        "runtime: {front: {port: '${ports'}}",
    ],
)
def test_what_may_not(text: str) -> None:
    """Misspelt keys and values that nobody declares."""
    assert errors(text)


def test_the_command_prints_it(cli: Cli) -> None:
    """Without compiling anything; of a group by its name."""
    assert json.loads(cli.run("config", "--schema").stdout)["$id"] == "launch.fleet-file/v1"
    assert json.loads(cli.run("config", "--schema", "server").stdout) == config_schema("server")
    assert "there are fleet, server" in cli.run("config", "--schema", "servers", code=2).stderr
