"""What the tests start in llama-server's place: that server on a tiny local model, with the front before it or not.

`python -P served.py ARGS…`, ARGS being llama-server's. `LLAMA_SERVER` is the real one, `CLIENTS_MODELS` a
folder of tiny models, `CLIENTS_THROUGH` direct or front. Models that the tests name by their place in the network are
replaced by tiny ones of the same kind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

_KINDS = {"bge": "bert", "reranker": "bert", "gemma3": "qwen2vl", "MOE": "qwen3moe"}
"""Part of a repository's name → the tiny architecture that stands in; any other: llama."""


def main(argv: list[str]) -> int:
    """Serve until SIGTERM; the exit code is the server's."""
    real, through = os.environ["LLAMA_SERVER"], os.environ["CLIENTS_THROUGH"]
    args = localized(argv, Path(os.environ["CLIENTS_MODELS"]))
    if through == "direct" or "--port" not in args:
        os.execv(real, [real, *args])  # noqa: S606  # the same process: the tests signal it
    sys.path.insert(0, str(Path(__file__).parents[2]))  # it runs where llama.cpp's tests do: they name files from there
    from tests.ports import free_port  # a direct server's start is not to wait for it, nor a front's for what it needs

    at = args.index("--port") + 1
    wanted, own = int(args[at]), free_port()
    args[at] = str(own)
    if os.environ.get("AIP_HTTP_PORT") == str(wanted):
        os.environ["AIP_HTTP_PORT"] = str(own)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the front has its own: the server ends, too
    with subprocess.Popen([real, *args], stdin=subprocess.DEVNULL) as server:
        try:
            from tests.clients import before

            before.run(server, args, wanted, own)
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


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
