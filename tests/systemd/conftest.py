"""A booted systemd, and a fleet of tiny models described in config, as an operator would."""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.systemd.booted import BootedHost, unavailable
from tests.tinymodels import shape_of

REPOSITORY = Path(__file__).parents[2]
PACKAGES = Path("/opt/launch-packages")
"""Where the host sees our installed packages."""
FIRST_PORT = 8081
FRONT_PORT = 8000
FRONT = f"http://127.0.0.1:{FRONT_PORT}"


@pytest.fixture(scope="session")
def can_boot() -> None:
    """Skips, with the reason, where no systemd can be booted."""
    if reason := unavailable():
        pytest.skip(f"no systemd booted here: {reason}")
    try:
        with BootedHost():
            pass
    except (RuntimeError, OSError) as error:
        pytest.skip(f"no systemd booted here: {error}")


@pytest.fixture
def host(can_boot: None) -> Iterator[BootedHost]:
    """A host of its own network, freshly booted."""
    with BootedHost(binds=binds()) as booted:
        yield booted


def binds() -> dict[str, Path | str]:
    """What a host sees of this machine that may lie where its units do not look."""
    return {
        "/opt/python": sys.base_prefix,
        "/opt/launch-checkout": REPOSITORY,
        str(PACKAGES): sysconfig.get_path("purelib"),
    }


def binary_there(llama_server: Path) -> Path:
    """Where a host sees our llama-server."""
    return PACKAGES / llama_server.relative_to(sysconfig.get_path("purelib"))


class Fleet:
    """A fleet on a booted host: config written to /srv/conf there, models beside it, compiled and installed there."""

    def __init__(self, host: BootedHost, model: Path, binary: Path) -> None:
        self.host, self.model, self.binary = host, model, binary
        _install_python(host)
        models = host.root / "srv/models"
        models.mkdir(parents=True)
        shutil.copy(model, models / "tiny.gguf")
        shape = shape_of("llama")
        self.config: dict[str, Any] = {
            "profile": {"name": "trio"},
            "engines": {"default": {"binary": str(binary), "dialect": "b10068"}},
            "models": {
                "tiny": {
                    "title": "tiny",
                    "source": "tests/tinymodels",
                    "architecture": {
                        "arch": "llama",
                        "n_layer": shape.n_layer,
                        "n_embd": shape.n_embd,
                        "n_head": shape.n_head,
                        "n_head_kv": shape.n_head_kv,
                        "key_length": shape.head_dim,
                        "value_length": shape.head_dim,
                        "n_ff": shape.n_ff,
                        "n_vocab": shape.n_vocab,
                        "n_ctx_train": shape.n_ctx_train,
                    },
                    "files": {"f16": {"path": "/srv/models/tiny.gguf"}},
                }
            },
            "runtime": {"front": {"port": FRONT_PORT}},
            "routing": {"breaker": {"open_s": 0.5, "open_max_s": 1}},
            "deploy": {"launch": "/usr/local/bin/launch"},
            "servers": {},
        }

    def server(self, name: str, **fields: Any) -> None:
        """One more server of the tiny model, on the next port."""
        port = FIRST_PORT + len(self.config["servers"])
        plain = {
            "slots": 1,
            "n_ctx": 256,
            "threads": 1,
            "cache_ram_mib": 0,
            "start_timeout_s": 30,
            "stall_timeout_s": 30,
            "stop_grace_s": 5,
        }
        self.config["servers"][name] = {
            "model": "tiny",
            "quantization": "f16",
            "tier": "hot",
            "port": port,
            **plain,
            **fields,
        }

    def launch(self, *words: str, code: int = 0) -> str:
        """`launch COMMAND …` on the host, for commands that compile with the fleet's overrides; its output."""
        done = self.host.run("launch", *words, check=False)
        assert done.returncode == code, f"{words}: rc {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def install(self, *words: str, code: int = 0) -> str:
        """Write the config and `launch install` it."""
        self.write()
        return self.launch("install", "--config-dir=/srv/conf", "hardware=dev", "profile=trio", *words, code=code)

    def write(self) -> None:
        """Write the config where the host finds it."""
        folder = self.host.root / "srv/conf/profile"
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(self.config, sort_keys=False)
        (folder / "trio.yaml").write_text(f"# @package _global_\n{text}")

    def ask(self, url: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status and JSON of a request made on the host, to a URL or a unix socket; status 0 when nothing answers."""
        at = ("--unix-socket", url, f"http://localhost{path}") if url.startswith("/") else (url + path,)
        data = ("--data", json.dumps(body)) if body is not None else ()
        done = self.host.run(
            "curl", "-s", "-m", "20", "-w", "\n%{http_code}", "-H", "Content-Type: application/json", *data, *at,
            check=False,
        )  # fmt: skip
        text, _, status = done.stdout.rpartition("\n")
        return int(status or 0), json.loads(text) if text.startswith(("{", "[")) else text

    def chat(self, model: str, url: str = FRONT) -> int:
        """Status of a short completion."""
        body = {"model": model, "prompt": "1", "max_tokens": 2}
        return self.ask(url, "/v1/completions", body)[0]


def _install_python(host: BootedHost) -> None:
    """`launch` as /usr/local/bin/launch: this Python may lie in a home, which units do not see."""
    path = f"/opt/launch-checkout:{PACKAGES}"
    python = f"/opt/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    script = host.root / "usr/local/bin/launch"
    run = "from launcher.cli import main; main()"
    lines = f"LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH={path} exec {python} -c '{run}' \"$@\""
    script.write_text(f"#!/bin/sh\n{lines}\n")
    script.chmod(0o755)


@pytest.fixture
def fleet(host: BootedHost, tiny_models: Callable[..., Path], llama_server: Path) -> Fleet:
    """No server yet."""
    return Fleet(host, tiny_models("llama"), binary_there(llama_server))
