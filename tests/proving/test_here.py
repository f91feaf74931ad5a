"""Before anything starts, every server's own binary is asked; engines that cannot answer are findings."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from launcher.compiler import Compilation, compile_fleet
from launcher.engine import prove
from launcher.hardware import take_inventory
from launcher.ir.host import HostGpu
from launcher.proving import prove_here
from launcher.proving.runs import prover
from launcher.sizes import MIB
from tests.children import killed_on_failure
from tests.cli.conftest import Cli
from tests.launched import LAUNCH

GARBAGE = "echo 'common_memory_breakdown_print: |   - Host | lots |'; echo projected to use much; sleep 5"
ILL = 'echo "system_info: CPU : AVX2 = 1 | NEVER_HEARD_OF = 1 |"; kill -ILL $$'


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / "state"))


def engine(folder: Path, real: Path, does: str) -> Path:
    """A binary whose help is the real one's, and whose start does something else."""
    path = folder / "llama-server"
    path.write_text(f'#!/bin/sh\ncase "$*" in *--help*|*--version*|*--list-devices*) exec {real} "$@";; esac\n{does}\n')
    path.chmod(0o755)
    return path


def compiled(binary: Path | None = None) -> Compilation:
    """The packaged default, by another binary."""
    other = () if binary is None else (f"engines.default.binary={binary}",)
    return compile_fleet(["hardware=dev", "profile=dev", *other])


@pytest.mark.parametrize(
    ("does", "code", "said"),
    [
        (ILL, "host/engine-unfit", "SIGILL"),
        ("echo GGML_ASSERT failed >&2; kill -ABRT $$", "host/engine-unfit", "GGML_ASSERT"),
        (GARBAGE, "engine/proof-unreadable", "cannot be read"),
        ("echo error: invalid argument >&2; exit 1", "plan/proof-failed", "invalid argument"),
        ("sleep 4321 & wait", "plan/proof-failed", "no projection within"),
        ("echo 'print_info: no_alloc              = 0'; sleep 4321", "engine/proof-unreadable", "went on"),
        ("exec yes 'nothing that ends'", "plan/proof-failed", "without a projection"),
        ("exec cat /dev/zero", "plan/proof-failed", "without a projection"),
        ("sleep 4321 >/dev/null 2>&1 & exit 1", "plan/proof-failed", "exit status 1"),
        ("setsid sleep 4321 & exit 1", "plan/proof-failed", "exit status 1"),
        ("timeout 999 sleep 4321", "plan/proof-failed", "no projection within"),
        ("echo oh; kill -9 $$", "plan/proof-failed", "SIGKILL; memory that runs out"),
        ("echo oh; kill -40 $$", "plan/proof-failed", "ended by signal 40: oh"),
    ],
    ids=[
        *("ill", "abort", "garbage", "refuses", "hangs", "loads", "many-lines", "one-line", "leaves-a-child"),
        *("leaves-a-session", "hangs-in-a-group", "killed", "real-time"),
    ],
)
def test_a_faulty_engine_is_a_finding(
    does: str,
    code: str,
    said: str,
    tmp_path: Path,
    llama_server: Path,
    no_orphans: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each fault by its code, with what happened; nothing is left behind; no figure is taken."""
    if said.startswith("no projection"):
        monkeypatch.setattr(prove, "TIMEOUT_S", 1.0)
    here = prove_here(compiled(engine(tmp_path, llama_server, does)))
    assert [f.code for f in here.findings] == [code]
    assert said in here.findings[0].message
    assert here.findings[0].location is not None
    assert here.compiled.plan.servers[0].proved is None
    _nothing_runs("4321")


def test_a_program_for_another_machine_is_unfit(tmp_path: Path, llama_server: Path) -> None:
    """ENOEXEC: the kernel will not run it, and the help was cached by another machine."""
    binary = engine(tmp_path, llama_server, "exit 1")
    fleet = compiled(binary)
    prove_here(fleet)
    binary.write_bytes(b"\x7fELF\x02\x01\x01" + b"\0" * 57)
    error = _dry_run_error(binary)
    assert error.cause == "unfit"


def test_an_engine_that_aborts_by_chance_is_asked_again(tmp_path: Path, llama_server: Path) -> None:
    """The first dry run dies of a signal, the second does not: the plan is proven, and nothing is found."""
    once = tmp_path / "once"
    binary = engine(tmp_path, llama_server, f'[ -e {once} ] && exec {llama_server} "$@"; touch {once}; kill -ABRT $$')
    here = prove_here(compiled(binary))
    assert not here.findings
    assert here.compiled.plan.servers[0].proved is not None


def test_an_engine_that_hangs_costs_its_limit_once(
    tmp_path: Path, llama_server: Path, no_orphans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of nine servers as many are asked as there are CPUs; the others are not, and one finding names all."""
    monkeypatch.setattr(prove, "TIMEOUT_S", 1.0)
    monkeypatch.setattr("launcher.proving.runs.os.cpu_count", lambda: 2)
    does = f"echo x >> {tmp_path}/calls; sleep 4321"
    of = "model: smollm2_135m, quantization: q4_1, tier: hot"
    more = [f"+servers.s{i}={{{of}, port: {9100 + i}, n_ctx: {1024 + 256 * i}}}" for i in range(8)]
    fleet = compile_fleet(
        ["hardware=dev", "profile=dev", f"engines.default.binary={engine(tmp_path, llama_server, does)}", *more]
    )
    (finding,) = prove_here(fleet).findings
    assert "s7" in finding.message
    assert len((tmp_path / "calls").read_text().split()) == 2
    _nothing_runs("4321")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda n: n.name)
def test_a_command_that_is_ended_leaves_no_engine(number: signal.Signals, tmp_path: Path, llama_server: Path) -> None:
    """Ctrl-C, systemd's stop, a closed terminal, kill -9, while a dry run hangs: at once, without a traceback."""
    asked, temporary = tmp_path / "asked", tmp_path / "tmp"
    temporary.mkdir()
    binary = engine(tmp_path, llama_server, f"echo $$ > {asked}.part; mv {asked}.part {asked}; exec sleep 4326")
    words = ["check", "hardware=dev", "profile=dev", f"engines.default.binary={binary}"]
    with killed_on_failure(
        subprocess.Popen(
            [LAUNCH, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(temporary)},
            text=True,
        )
    ) as command:
        until = time.monotonic() + 60
        while not asked.exists():
            assert command.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        for _ in range(10):  # somebody is impatient
            command.send_signal(number)
            time.sleep(0.003)
        said, _ = command.communicate(timeout=30)
    _nothing_runs("4326")
    killed = number is signal.SIGKILL
    assert command.returncode == (-number if killed else 128 + number)
    assert "Traceback" not in said
    assert killed or not list(temporary.iterdir())


def test_what_a_killed_proof_left_behind_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that nobody holds and that are not new; a link by such a name is not followed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old, new, kept = tmp_path / "launch-prove-old", tmp_path / "launch-prove-new", tmp_path / "kept"
    for folder in (old, new, kept):
        folder.mkdir()
        (folder / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "launch-prove-link").symlink_to(kept)
    os.utime(old, (1, 1))
    with prover({}, (), {}) as first:
        os.utime(first.folder, (1, 1))
        with prover({}, (), {}) as second:
            assert [f.exists() for f in (old, new, first.folder, second.folder)] == [False, True, True, True]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "launch-prove-link", "launch-prove-new"]
    assert list(kept.iterdir())


def test_a_sound_engine_proves_the_plan() -> None:
    """The plan says who proved it, and the second time nothing is run."""
    first = prove_here(compiled())
    again = prove_here(first.compiled)
    (server,) = first.compiled.plan.servers
    assert server.proved is not None
    assert server.proved.build == "b10068"
    memory = server.takes("ram")
    assert memory is not None
    told = memory.model_bytes + memory.kv_bytes + memory.compute_bytes + memory.output_bytes
    assert 0.9 * told < server.proved.memory["ram"] <= told + 6 * MIB
    assert not first.findings
    assert "1 of 1 servers proven by b10068" in first.lines[0][1]
    assert "earlier" in again.lines[0][1]


@pytest.mark.parametrize("seen", [True, False])
def test_a_card_that_only_the_engine_sees_is_proven_on(seen: bool, tmp_path: Path, llama_server: Path) -> None:
    """No driver lists it here: the engine's own word counts; where it sees none, it is said who was not proven."""
    binary = tmp_path / "llama-server"
    lists = "printf 'Available devices:\\n  Vulkan0: Iris (16384 MiB, 16000 MiB free)\\n'; exit" if seen else "exit"
    asked = f'case "$*" in *--list-devices*) {lists};; *--fit*) kill -ILL $$;; *) exec {llama_server} "$@";; esac'
    binary.write_text(f"#!/bin/sh\n{asked}\n")
    binary.chmod(0o755)
    card = "+hardware.gpus.vulkan0={backend: vulkan, vram_bytes: 16GiB}"
    words = [f"engines.default.binary={binary}", card, "servers.assistant.devices=[vulkan0]"]
    here = prove_here(compile_fleet(["hardware=dev", "profile=dev", *words]))
    assert [f.code for f in here.findings] == (["host/engine-unfit"] if seen else [])
    assert (
        ("proof of assistant", "its devices are not on this host: the plan's bounds stand") in here.lines
    ) is not seen


def test_shared_tensors_have_no_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is not asked, nothing is found, and people are told that the bound stands."""
    found = take_inventory()
    card = HostGpu(name="cuda0", backend="cuda", model="any", vram_bytes=1 << 34, free_bytes=1 << 34)
    monkeypatch.setattr("launcher.proving.here.take_inventory", lambda: msgspec.structs.replace(found, gpus=(card,)))
    cards = [f"+hardware.gpus.cuda{i}={{backend: cuda, vram_bytes: 16GiB}}" for i in (0, 1)]
    shared = ["servers.assistant.devices=[cuda0,cuda1]", "servers.assistant.split_mode=tensor"]
    here = prove_here(compile_fleet(["hardware=dev", "profile=dev", *cards, *shared]))
    assert here.findings == ()
    assert ("proof of assistant", "split_mode tensor has no dry run: the plan's bounds stand") in here.lines
    with pytest.raises(prove.DryRunError, match="no dry run under --split-mode row"):
        prove.dry_run(("llama-server", "--split-mode", "row"), {}, model="m")


def test_what_the_binary_says_is_planned_where_it_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bound that is too small (its own figure halved), the plan takes the proof."""
    from launcher.plan.proof import unshared_memory

    def halved(*args: object) -> dict[str, object]:
        memory = unshared_memory(*args)  # type: ignore[arg-type]
        return {
            name: tuple(msgspec.structs.replace(m, kv_bytes=m.kv_bytes // 2) for m in each)
            for name, each in memory.items()
        }

    bound = compiled()
    monkeypatch.setattr("launcher.proving.here.unshared_memory", halved)
    here = prove_here(bound)
    before, after = bound.plan.servers[0].memory[0], here.compiled.plan.servers[0].memory[0]
    assert after.kv_bytes == pytest.approx(before.kv_bytes * 1.5, rel=0.01)
    assert after.committed_bytes - before.committed_bytes == after.kv_bytes - before.kv_bytes
    assert "beyond the bound" in here.lines[1][1]


def test_up_and_check_refuse_an_unfit_engine_before_a_model_loads(
    cli: Cli,
    tmp_path: Path,
    llama_server: Path,
) -> None:
    """Exit code 6, the finding with place and remedy, nothing started."""
    binary = engine(tmp_path, llama_server, ILL)
    words = (*cli.dev, f"engines.default.binary={binary}")
    for command in ("check", "up"):
        done = cli.run(command, *words, code=6)
        assert "host/engine-unfit" in done.stdout + done.stderr
        assert "make engine" in done.stdout + done.stderr
    assert cli.json("status")["fleets"] == []


def test_flags_in_the_environment_reach_no_server(cli: Cli) -> None:
    """A key, an embedding switch and a template of the caller's change nothing; they are named once, without values."""
    cli.env |= {"LLAMA_API_KEY": "sesame", "LLAMA_ARG_EMBEDDINGS": "1", "LLAMA_ARG_CHAT_TEMPLATE": "gemma"}
    done = cli.run("up", *cli.dev, "--detach")
    try:
        said = done.stdout + done.stderr
        assert said.count("host/environment-withheld") == 1
        assert "LLAMA_API_KEY, LLAMA_ARG_CHAT_TEMPLATE, LLAMA_ARG_EMBEDDINGS" in said
        assert "sesame" not in said
        environment = psutil.Process(cli.process()["pid"]).environ()
        assert not [name for name in environment if name.startswith(("LLAMA_", "GGML_"))]
        assert environment["HOME"] == str(cli.home)
    finally:
        cli.run("stop", "--all")


def test_a_plain_environment_is_not_spoken_of(cli: Cli) -> None:
    """Nothing that an engine reads, nothing said."""
    assert "withheld" not in cli.run("check", *cli.dev).stdout


def _dry_run_error(binary: Path) -> prove.DryRunError:
    with pytest.raises(prove.DryRunError) as caught:
        prove.dry_run((str(binary),), {}, model="m", timeout_s=5)
    return caught.value


def _nothing_runs(word: str) -> None:
    deadline = time.monotonic() + 60
    while left := [p.pid for p in psutil.process_iter(["cmdline"]) if word in (p.info["cmdline"] or ())]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
