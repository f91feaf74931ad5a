"""`launch up`, `status`, `logs`, `reload`, `stop` with the real llama-server and the real small model."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from launcher.cli.ask import curl, plain_key
from tests.children import killed_on_failure
from tests.cli.conftest import Cli
from tests.late import Late

openai = Late("openai")

pytestmark = pytest.mark.xdist_group("fleet")


def eventually(condition: Callable[[], Any], timeout_s: float = 60) -> Any:
    """The first true value of `condition`; fails when none comes."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    return pytest.fail("it never became true")


def gone(pid: int) -> bool:
    """Whether process `pid` has ended, reaped by its parent or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def client(cli: Cli) -> openai.OpenAI:
    """The public client, pointed at the front; to be closed."""
    return openai.OpenAI(base_url=f"{cli.front}/v1", api_key="none", max_retries=0, timeout=60)


def chat(cli: Cli, model: str, **options: Any) -> Any:
    """One short chat; of a stream the chunks."""
    message: Any = {"role": "user", "content": "Say hello."}
    with client(cli) as public:
        answer = public.chat.completions.create(model=model, messages=[message], max_tokens=8, **options)
        return list(answer) if options.get("stream") else answer


def test_a_fleet_starts_answers_heals_and_stops(cli: Cli) -> None:
    """The whole life of a detached fleet, seen through commands and the public client.

    Its server asks for a key that nobody made: only the front may use it.
    """
    key_file = cli.home / "keys" / "servers.key"
    up = (*cli.dev, f"runtime.server_key_file={key_file}")
    done = cli.run("up", *up, "--detach")
    assert "ready in" in done.stderr
    assert "curl" in done.stdout

    for name in ("assistant", "smollm2"):
        assert chat(cli, name).choices[0].message.content
    assert "".join(c.choices[0].delta.content or "" for c in chat(cli, "assistant", stream=True) if c.choices)
    with client(cli) as public:
        assert "assistant" in [m.id for m in public.models.list()]
    with pytest.raises(openai.NotFoundError, match="asistant"):
        chat(cli, "asistant")
    assert httpx.get(f"{cli.front}/ready").status_code == 200
    assert key_file.stat().st_mode & 0o777 == 0o600
    direct = f"http://127.0.0.1:{cli.process()['port']}/tokenize"
    own = {"Authorization": f"Bearer {key_file.read_text().strip()}"}
    assert [httpx.post(direct, json={"content": "a"}, headers=h).status_code for h in ({}, own)] == [401, 200]

    before = cli.process()
    assert (before["state"], before["restarts"]) == ("ready", 0)
    os.kill(before["pid"], signal.SIGKILL)
    after = eventually(lambda: (p := cli.process())["state"] == "ready" and p["pid"] != before["pid"] and p)
    assert after["restarts"] == 1
    assert chat(cli, "assistant").choices[0].message.content

    assert "smollm2" in cli.run("status").stdout.lower()
    assert cli.run("logs", "assistant", "-n", "5").stdout.strip()
    assert "assistent" in cli.run("stop", "assistent", code=2).stderr
    for command in ("logs", "status", "reload"):
        assert "did you mean assistant" in cli.run(command, "assistent", code=2).stderr
    assert "already running" in cli.run("up", *up, "--detach", code=6).stderr
    elsewhere = ("profile.name=second", f"runtime.front.port={cli.free_port()}")
    second = cli.run("up", *up, *elsewhere, "--detach", code=6).stderr
    state = cli.home / "state/launch/dev-dev"
    assert f", assistant of dev-dev in {state})" in second
    assert "launch switch" not in second  # whose front is another: it stays, and what it has is taken

    kept = cli.json("reload")["fleets"][0]
    assert kept["kept"] == ["assistant"]
    restarted = cli.json("reload", "assistant")["fleets"][0]
    assert restarted["restarted"] == ["assistant"]
    assert cli.json("reload", "servers.assistant.slots=1")["fleets"][0]["restarted"] == ["assistant"]
    assert cli.process()["slots"] == 1
    assert "dev-dev runs" in cli.run("reload", "hardware=auto", code=2).stderr
    assert cli.json("reload")["fleets"][0]["kept"] == ["assistant"]
    assert chat(cli, "assistant").choices[0].message.content

    cli.run("stop", "assistant")
    left = cli.json("reload")["fleets"][0]
    assert (left["kept"], left["not_running"]) == ([], ["assistant"])
    assert cli.run("reload").stdout == "  not running, as before: assistant\n"

    cli.run("stop", "--all")
    assert cli.json("status") == {"schema": "launch.statuses/v1", "fleets": []}
    assert "nothing was running" in cli.run("stop", "--all").stdout


def test_ctrl_c_leaves_nothing_behind(cli: Cli) -> None:
    """Foreground, plain lines in a pipe, exit code 0, every process gone (the fixture looks)."""
    with killed_on_failure(cli.start("up", *cli.dev, "--ask", "Say hello.")) as process:
        lines: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C stops everything" in line:
                os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 0
    text = "".join(lines)
    assert "assistant: started, pid" in text
    assert "you: Say hello." in text
    assert "stopped" in lines[-1]
    assert "\x1b" not in text


@pytest.mark.slow
def test_stop_under_load_leaves_no_process(cli: Cli) -> None:
    """Streams are running when `stop --all` comes; each ends, with an answer or an error, and so does everything."""
    cli.run("up", *cli.dev, "--detach")
    ended = []

    def stream() -> None:
        """Reads one long stream to its end, whatever that is."""
        message: Any = {"role": "user", "content": "Count to a thousand."}
        with contextlib.suppress(openai.APIError, httpx.HTTPError), client(cli) as public:
            for _ in public.chat.completions.create(model="assistant", messages=[message], max_tokens=400, stream=True):
                pass
        ended.append(True)

    threads = [threading.Thread(target=stream) for _ in range(6)]
    for thread in threads:
        thread.start()
    eventually(lambda: cli.process()["in_flight"] > 0)
    cli.run("stop", "--all")
    for thread in threads:
        thread.join(30)
    assert len(ended) == 6


def test_a_start_that_fails_says_why_and_stops(cli: Cli, llama_server: Path) -> None:
    """The cause and the log's tail are shown, the exit code is SuperviseError's, nothing runs on."""
    broken = cli.home / "llama-server"
    fails = "echo error: no such thing >&2; exit 1"
    broken.write_text(f'#!/bin/sh\ncase "$*" in *--fit\\ on*) ;; *--port*) {fails};; esac\nexec {llama_server} "$@"\n')
    broken.chmod(0o755)
    done = cli.run("up", *cli.dev, f"engines.default.binary={broken}", "--detach", code=7)
    assert "assistant" in done.stderr
    assert "no such thing" in done.stderr
    assert cli.json("status")["fleets"] == []


def test_words_that_cannot_start_are_refused_before_a_start(cli: Cli) -> None:
    """A file of `extra_args` that is not there: the dry run says it, and nothing is started."""
    done = cli.run("up", *cli.dev, "servers.assistant.extra_args=[--chat-template-file,/nowhere]", "--detach", code=4)
    assert "plan/proof-failed" in done.stderr
    assert "/nowhere" in done.stderr
    assert cli.json("status")["fleets"] == []


def test_servers_of_a_killed_runtime_are_found_again(cli: Cli) -> None:
    """After kill -9 of the runtime, `status` shows its server, `stop` ends exactly that."""
    cli.run("up", *cli.dev, "--detach")
    fleet = cli.json("status")["fleets"][0]
    os.kill(fleet["runtime_pid"], signal.SIGKILL)
    eventually(lambda: gone(fleet["runtime_pid"]))
    left = cli.json("status")["fleets"][0]
    assert left["runtime_pid"] is None
    assert [p["pid"] for p in left["processes"]] == [p["pid"] for p in fleet["processes"]]
    assert "stopped assistant" in cli.run("stop", "--all").stdout
    assert gone(left["processes"][0]["pid"])


def test_stop_during_a_start_ends_it(cli: Cli, llama_server: Path) -> None:
    """`stop --all` as soon as the lock is held: no traceback, exit 0; `up` says why it ended, with 7; nothing runs."""
    slow = cli.home / "llama-server"
    slow.write_text(f'#!/bin/sh\ncase "$*" in *--fit\\ on*) ;; *--port*) sleep 30;; esac\nexec {llama_server} "$@"\n')
    slow.chmod(0o755)
    with killed_on_failure(cli.start("up", *cli.dev, f"engines.default.binary={slow}", "--detach")) as starting:
        lock = next(iter(eventually(lambda: list((cli.home / "state/launch").glob("*/runtime.lock")))))
        eventually(lambda: lock.read_bytes().strip())
        assert "stopped" in cli.run("stop", "--all").stdout
        assert starting.wait(30) == 7
        assert starting.stdout is not None
        assert "told to stop before it was ready" in starting.stdout.read()
    assert cli.json("status")["fleets"] == []


def test_commands_agree_about_a_lock_without_a_name(cli: Cli) -> None:
    """`status` shows it, `stop` and `up` refuse, none with a traceback."""
    state = cli.home / "state/launch/dev-dev"
    (state / "servers").mkdir(parents=True)
    (state / "runtime.lock").write_text('{"pid":"x"}')
    with (state / "runtime.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "names no runtime" in cli.run("status").stdout
        assert "does not name" in cli.run("stop", "--all", code=7).stderr
        assert "already running" in cli.run("up", *cli.dev, "--detach", code=6).stderr


def test_a_reload_of_nothing_is_no_success(cli: Cli) -> None:
    """Exit code 7: nothing was done, whether nothing runs or `up` has only just begun."""
    assert "nothing was reloaded" in cli.run("reload", code=7).stderr


@pytest.mark.slow
def test_a_reload_works_under_a_lax_umask(cli: Cli) -> None:
    """The deployment that `up` writes is its owner's alone, so that the runtime takes it over."""
    before = os.umask(0o002)
    try:
        cli.run("up", *cli.dev, "--detach")
    finally:
        os.umask(before)
    assert cli.json("reload")["fleets"][0]["kept"] == ["assistant"]
    cli.run("stop", "--all")


@pytest.mark.slow
def test_a_served_fleet_is_not_reloaded_from_an_old_request(cli: Cli) -> None:
    """`up`, `stop`, then `serve` of another directory: the request of `up` is not what runs, and changes nothing."""
    cli.run("up", *cli.dev, "--detach")
    cli.run("stop", "--all")
    state = cli.home / "state/launch/dev-dev"
    shutil.copytree(state / "deployment", cli.home / "served")
    with killed_on_failure(cli.start("serve", str(cli.home / "served"))) as serving:
        eventually(lambda: any(f["ready"] for f in cli.json("status", code=None)["fleets"]))
        before = cli.process()["pid"]
        assert "served, not by `launch up`" in cli.run("reload", "assistant", code=7).stderr
        assert cli.process()["pid"] == before
        cli.run("stop", "--all")
        assert serving.wait(30) == 0


def test_the_question_is_answered_where_keys_are_asked_for_and_nobody_stays(cli: Cli) -> None:
    """`--detach --ask`: the command ends with the answer, asked with a key that is not printed; the fleet runs on."""
    keys = cli.home / "keys of the front"
    keys.write_text("a-plain-key\n")
    up = (*cli.dev, f"runtime.front.api_key_file='{keys}'", "--detach")
    told = cli.run("up", *up, "--ask", "Say hello.")
    assert "tokens/s" in told.stdout
    assert "`launch stop --all` stops everything" in told.stdout
    assert "a-plain-key" not in told.stdout + told.stderr
    (command,) = (line for line in told.stdout.splitlines() if line.startswith("  curl "))
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert '"choices"' in answer.stdout
    cli.run("stop", "--all")


@pytest.mark.parametrize(
    ("text", "key", "spelled"),
    [
        ("plain-key\nother-key name=x\n", "plain-key", "$(head -n1 '{}')"),
        ("# keys\nplain-key\n", "plain-key", "$YOUR_KEY"),
        ("plain-key name=x\n", "plain-key", "$YOUR_KEY"),
        ("plain-key\r\n", "plain-key", "$YOUR_KEY"),
        (f"sha256:{hashlib.sha256(b'secret').hexdigest()}\n", None, "$YOUR_KEY"),
        (f"sha256:{hashlib.sha256(b'secret').hexdigest()}\nplain-key", "plain-key", "$YOUR_KEY"),
        ("boss-key scopes=admin\n", None, "$YOUR_KEY"),
        ("boss-key scopes=admin\nlimited-key models=other\nplain-key models=assistant\n", "plain-key", "$YOUR_KEY"),
        ("", None, "$YOUR_KEY"),
    ],
)
def test_where_a_key_stands(tmp_path: Path, text: str, key: str | None, spelled: str) -> None:
    """The command to paste reads a key only where a shell gets it whole."""
    file = tmp_path / "the keys"
    file.write_bytes(text.encode())
    assert plain_key(str(file), "assistant") == key
    command = curl("http://127.0.0.1:8000", "assistant", "Say hello.", str(file))
    assert f' -H "Authorization: Bearer {spelled.format(file)}" ' in command


def test_without_keys_nothing_is_said_of_them() -> None:
    """No header."""
    assert "Authorization" not in curl("http://127.0.0.1:8000", "assistant", "Say hello.")
