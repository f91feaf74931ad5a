"""The reference of the config's keys."""

from __future__ import annotations

from launcher.cli.fields import find_keys, keys
from tests.cli.conftest import Cli


def test_every_key_once() -> None:
    """By its path; with what it means where the types say so."""
    paths = [key.path for key in keys()]
    assert len(set(paths)) == len(paths) > 300
    by = {key.path: key for key in keys()}
    assert by["servers.NAME.devices"].default == "[]"
    assert "auto" in by["servers.NAME.devices"].meaning
    assert by["runtime.front.port"].default == "8000"
    assert by["servers.NAME.model"].default == ""


def test_a_key_is_found_by_what_people_write() -> None:
    """With an entry's name, without it, or by its end alone."""
    for wanted in ("servers.chat.slots", "servers.slots", "servers.NAME.slots"):
        assert [key.path for key in find_keys(wanted)] == ["servers.NAME.slots"]
    assert "servers.NAME.n_gpu_layers" in {key.path for key in find_keys("n_gpu_layers")}
    assert find_keys("nonsense") == ()


def test_explain_takes_a_key(cli: Cli) -> None:
    """Beside the codes of findings."""
    assert "default 8000" in cli.run("explain", "runtime.front.port").stdout
    told = cli.run("explain", "servers").stdout
    assert {"ttl_s", "n_gpu_layers", "aliases"} <= {line.split()[0] for line in told.splitlines()}
    assert (
        "launch explain servers.assistant" in cli.run("plan", "servers.assistant.nonsense=1", *cli.dev, code=2).stderr
    )
    assert "error[config/unknown-code]" in cli.run("explain", "n_gpu_layrs", code=2).stderr
