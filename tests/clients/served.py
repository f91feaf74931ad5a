"""What the tests start in llama-server's place: that server on a tiny local model, with the front before it or not.

`python -m tests.clients.served ARGS…`, ARGS being llama-server's. `LLAMA_SERVER` is the real one, `CLIENTS_MODELS` a
folder of tiny models, `CLIENTS_THROUGH` direct or front. Models that the tests name by their place in the network are
replaced by tiny ones of the same kind.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import uvloop

from launcher.route import Front, StaticUpstreams, serve
from tests.ports import free_port
from tests.route.fleet import front_unit, table, target

_KINDS = {"bge": "bert", "reranker": "bert", "gemma3": "qwen2vl", "MOE": "qwen3moe"}
"""Part of a repository's name → the tiny architecture that stands in; any other: llama."""


def main(argv: list[str]) -> int:
    """Serve until SIGTERM; the exit code is the server's."""
    real, through = os.environ["LLAMA_SERVER"], os.environ["CLIENTS_THROUGH"]
    args = localized(argv, Path(os.environ["CLIENTS_MODELS"]))
    if through == "direct" or "--port" not in args:
        os.execv(real, [real, *args])  # noqa: S606  # the same process: the tests signal it
    at = args.index("--port") + 1
    wanted, own = int(args[at]), free_port()
    args[at] = str(own)
    if os.environ.get("AIP_HTTP_PORT") == str(wanted):
        os.environ["AIP_HTTP_PORT"] = str(own)
    with subprocess.Popen([real, *args], stdin=subprocess.DEVNULL) as server:
        try:
            uvloop.run(_front(server, args, wanted, own))
        finally:
            server.terminate()
    return server.returncode


def localized(argv: list[str], models: Path) -> list[str]:
    """`argv` with a local model in the place of one in the network."""
    args, repository = [], ""
    words = iter(argv)
    for word in words:
        if word in ("--hf-repo", "--hf-file", "--mmproj-url", "--model-url"):
            repository += next(words)
        else:
            args.append(word)
    if repository:
        kind = next((arch for part, arch in _KINDS.items() if part in repository), "llama")
        args += ["--model", str(models / f"{kind}-f16.gguf")]
        if kind == "qwen2vl" and "--no-mmproj" not in args:
            args += ["--mmproj", str(models / "qwen2vl-projector-f16.gguf")]
    return args


async def _front(server: subprocess.Popen[bytes], args: list[str], port: int, own: int) -> None:
    """A front for this one server, open once it answers, until SIGTERM or the server's end."""
    shutdown = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, shutdown.set)

    def value(*names: str) -> str | None:
        return next((args[args.index(n) + 1] for n in names if n in args), None)

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{own}", timeout=5) as client:
        while not await _answers(client):
            if server.poll() is not None or shutdown.is_set():
                return
            await asyncio.sleep(0.02)
    aliases = tuple(filter(None, (value("--alias", "-a") or "").split(",")))
    unit: dict[str, Any] = {
        "slots": int(value("--parallel", "-np") or 4),
        "aliases": aliases[1:],
        "request_timeout_s": 600,
    }
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        limits: dict[str, Any] = {"max_body_bytes": 1 << 30, "list_aliases": True}
        if key := value("--api-key"):
            keys.write(f"{key}\n")
            keys.flush()
            limits["api_key_file"] = unit["api_key_file"] = keys.name
        name = aliases[0] if aliases else "model"
        routes = table(target(name, own, **unit), front=front_unit(**limits), unknown_model="default")
        serving = serve(
            Front(routes, StaticUpstreams()), host="127.0.0.1", port=port, shutdown=shutdown, drain_timeout_s=1
        )
        await asyncio.gather(serving, _watch(server, shutdown))


async def _answers(client: httpx.AsyncClient) -> bool:
    """Whether the server is ready."""
    try:
        return (await client.get("/health")).status_code == 200
    except httpx.TransportError:
        return False


async def _watch(server: subprocess.Popen[bytes], shutdown: asyncio.Event) -> None:
    """End with the server."""
    while server.poll() is None and not shutdown.is_set():  # noqa: ASYNC110  # a process has no event
        await asyncio.sleep(0.1)
    shutdown.set()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
