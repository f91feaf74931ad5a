"""`launch checkpoint` on a real llama-server: created, compared, restored running and stopped, refused by digest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import Cli

pytestmark = pytest.mark.xdist_group("fleet")


@pytest.fixture
def own_model(cli: Cli, smollm2: Path) -> Path:
    """A copy of the model that may be spoiled."""
    path = cli.home / "own.gguf"
    shutil.copyfile(smollm2, path)
    return path


def spoil(path: Path) -> bytes:
    """Change the last byte of `path`, keeping its size and mtime; gives the content before."""
    before, times = path.read_bytes(), path.stat()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return before


def test_a_fleet_is_what_it_was_again(cli: Cli, own_model: Path) -> None:
    """The whole way: what runs is kept, changed, compared, refused while a file differs, restored, and looked at."""
    template = cli.home / "own.jinja"
    template.write_text("{{ messages[0].content }}")
    config = cli.home / "groups"
    (config / "server").mkdir(parents=True)
    (config / "server/mine.yaml").write_text("# a user's own file\n")
    up = (*cli.dev, f"models.smollm2_135m.files.q4_1.path={own_model}", "--config-dir", str(config))
    up = (*up, f"servers.assistant.extra_args=[--chat-template-file,{template}]")
    cli.run("up", *up, "--detach")
    made = cli.json("checkpoint", "create", "before")
    assert (made["deployment"], made["running"], made["config_files"]) == ("dev-dev", 1, 1)
    assert "already" in cli.run("checkpoint", "create", "before", code=2).stderr
    listed = cli.json("checkpoint", "list")["checkpoints"]
    assert [(c["name"], c["servers"]) for c in listed] == [("before", 1)]
    assert "no difference" in cli.run("checkpoint", "diff", "before").stdout

    cli.run("reload", "servers.assistant.slots=1")
    (config / "server/mine.yaml").write_text("# changed\n")
    changed = cli.json("checkpoint", "diff", "before")
    assert "--ctx-size" in changed["restarted"]["assistant"]
    assert changed["overrides"]["only_against"] == ["servers.assistant.slots=1"]
    assert changed["config_files"] == ["0/server/mine.yaml"]

    runtime = cli.json("status")["fleets"][0]["runtime_pid"]
    # nothing is compiled: the config that it came from may be broken, or gone
    (config / "server/mine.yaml").write_text("[")
    before = spoil(own_model)
    refused = cli.run("checkpoint", "restore", "before", code=3).stderr
    assert "checkpoint/digest-differs" in refused
    assert str(own_model) in refused
    assert cli.process()["slots"] == 1
    own_model.write_bytes(before)
    text = template.read_text()
    template.unlink()
    assert str(template) in cli.run("checkpoint", "restore", "before", code=3).stderr
    template.write_text(text)

    assert cli.json("checkpoint", "restore", "before")["restarted"] == ["assistant"]
    process = cli.process()
    assert (process["state"], process["slots"], process["drift"]) == ("ready", 2, "")
    assert cli.json("status")["fleets"][0]["runtime_pid"] == runtime

    cli.run("stop", "--all")
    assert cli.json("checkpoint", "diff", "before")["states"] == {"assistant": ["ready", "absent"]}
    assert cli.json("checkpoint", "restore", "before")["started"] == ["assistant"]
    body = {"model": "assistant", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    assert httpx.post(f"{cli.front}/v1/chat/completions", json=body, timeout=30).status_code == 200
    cli.run("stop", "--all")
    assert "deleted before" in cli.run("checkpoint", "delete", "before").stdout
    assert "there are no checkpoints" in cli.run("checkpoint", "list").stdout


@pytest.mark.slow
def test_weights_that_were_put_back_are_loaded_again(cli: Cli, own_model: Path) -> None:
    """The command line is the same, but what runs had loaded the file that lay there meanwhile."""
    cli.run("up", *cli.dev, f"models.smollm2_135m.files.q4_1.path={own_model}", "--detach")
    cli.run("checkpoint", "create", "before")
    pid = cli.process()["pid"]
    assert cli.json("checkpoint", "restore", "before")["kept"] == ["assistant"]
    assert cli.process()["pid"] == pid
    own_model.write_bytes(spoil(own_model))
    assert cli.json("checkpoint", "restore", "before")["restarted"] == ["assistant"]
    assert cli.process()["pid"] != pid
    cli.run("stop", "--all")


@pytest.mark.slow
def test_what_was_stopped_since_is_told_as_started(cli: Cli) -> None:
    """Nothing differs but that a server was stopped: a restore starts it and says so."""
    cli.run("up", *cli.dev, "--detach")
    cli.run("checkpoint", "create", "before")
    cli.run("stop", "assistant")
    done = cli.json("checkpoint", "restore", "before")
    assert (done["started"], done["kept"]) == (["assistant"], [])
    assert "nothing had changed" in cli.run("checkpoint", "restore", "before").stdout
    cli.run("stop", "--all")


@pytest.mark.slow
def test_another_front_means_another_runtime(cli: Cli) -> None:
    """What a runtime reads only at its start is restored by starting one; a stopped server stays stopped."""
    cli.run("up", *cli.dev, "--detach")
    cli.run("stop", "assistant")
    cli.run("checkpoint", "create", "stopped")
    cli.run("stop", "--all")
    cli.run("up", *cli.dev, "runtime.drain_timeout_s=7", "--detach")
    runtime = cli.json("status")["fleets"][0]["runtime_pid"]
    cli.run("checkpoint", "restore", "stopped")
    fleet = cli.json("status")["fleets"][0]
    assert fleet["runtime_pid"] != runtime
    assert cli.process()["state"] == "stopped"
    cli.run("stop", "--all")


def test_words_that_are_no_checkpoint_command(cli: Cli) -> None:
    """Usage errors, unknown names and fleets: exit code 2, said what is known."""
    assert "launch checkpoint create NAME" in cli.run("checkpoint", "make", "x", code=2).stderr
    assert "launch checkpoint diff NAME [OTHER]" in cli.run("checkpoint", "diff", code=2).stderr
    assert "nothing-there" in cli.run("checkpoint", "create", "x", code=2).stderr
    assert "unknown-deployment" in cli.run("checkpoint", "list", "--deployment", "nope", code=2).stderr
