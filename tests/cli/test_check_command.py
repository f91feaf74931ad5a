"""`launch check` where all is well, and where nothing is."""

from __future__ import annotations

import socket

from .conftest import Cli

SUBJECTS = ["engine default", "memory", "files", "programs", "locks", "ports", "cpus", "disk"]


def test_all_is_well(cli: Cli) -> None:
    """It says what it looked at, with numbers; the one note is about the fixture's own port."""
    text = cli.run("check", *cli.dev).stdout
    assert [line.split("  ")[0] for line in text.splitlines()[: len(SUBJECTS)]] == SUBJECTS
    assert "flags of 1 server," in text
    assert "1 to be read, all readable" in text
    assert text.rstrip().endswith("1 server checked on this host, 1 note")


def test_nothing_is(cli: Cli) -> None:
    """The EPYC's fleet on this machine: every subject still has its line, and the findings say the rest."""
    document = cli.json("check", "hardware=epyc", "profile=hot_only", code=5)
    assert document["schema"] == "launch.check/v1"
    said = {line["subject"]: line["found"] for line in document["checked"]}
    assert list(said) == [*SUBJECTS, "models"]
    assert "cannot be run here; planned for b10434" in said["engine default"]
    assert "cannot be read" in said["files"]
    codes = {f["code"] for f in document["findings"]}
    assert {"host/file-missing", "host/ram-short", "engine/missing-binary", "host/cpus-missing"} <= codes


def test_a_device_that_the_build_does_not_see(cli: Cli) -> None:
    """The real build is asked which devices it sees."""
    card = "hardware.gpus={vulkan7:{backend:vulkan,vram_bytes:4GiB,target_min:0}}"
    uses = ("servers.assistant.devices=[vulkan7]", "servers.assistant.n_gpu_layers=all")
    document = cli.json("check", *cli.dev, card, *uses, code=5)
    found = {f["code"]: f["message"] for f in document["findings"]}
    assert "sees no Vulkan7 here" in found["engine/device-missing"]


def test_what_install_would_refuse_is_said(cli: Cli) -> None:
    """A unix socket for which no unit has a folder: `up` does without, and `check` knows."""
    words = [word for word in cli.dev if not word.startswith(("servers.assistant.port", "ports.assistant"))]
    document = cli.json("check", *words, "servers.assistant.host=/srv/chat.sock")
    assert "render/socket-folder" in {f["code"] for f in document["findings"]}


def test_the_first_stage_with_an_error_decides_how_check_and_up_exit(cli: Cli) -> None:
    """A missing binary is an EngineError (5) wherever it is said; what else this host lacks is a HostError (6)."""
    nowhere = "engines.default.binary=/nowhere/llama-server"
    probed = cli.json("plan", *cli.dev, nowhere, "engines.default.dialect=probe", code=5)
    assert [f["code"] for f in probed["findings"]] == ["engine/missing-binary"]
    assert "engine/missing-binary" in cli.run("check", *cli.dev, nowhere, code=5).stdout
    assert "engine/missing-binary" in cli.run("up", *cli.dev, nowhere, code=5).stderr
    with socket.create_server(("127.0.0.1", cli.server_port)):
        assert "host/port-taken" in cli.run("check", *cli.dev, code=6).stdout
        said = cli.run("up", *cli.dev, code=6).stderr
        assert "host/port-taken" in said
        assert f"choose another port: servers.assistant.port={cli.server_port + 100}" in said
        cli.run("check", *cli.dev, nowhere, code=5)
