"""`launch import`: a file of another program, as a fleet that is planned and runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import yaml

from tests.cli.conftest import Cli

Tiny = Callable[..., Path]

SWAP = """\
macros: {{run: "llama-server --port ${{PORT}}"}}
models:
  "llama3:1b": {{cmd: "${{run}} -m {folder}/llama.gguf -c 1024 -np 1 -ngl 99", ttl: 60, concurrencyLimit: 2}}
  embed: {{cmd: "${{run}} -m {folder}/bert.gguf --embeddings"}}
groups: {{always: {{swap: false, exclusive: false, members: [embed]}}}}
hooks: {{on_startup: {{preload: [embed]}}}}
"""


def test_llama_swap_runs(cli: Cli, tiny_models: Tiny) -> None:
    """What it said is planned, what it lost is said, and a client that used it gets its answers by the same names."""
    for arch in ("llama", "bert"):
        shutil.copy(tiny_models(arch), cli.home / f"{arch}.gguf")
    (cli.home / "config.yaml").write_text(SWAP.format(folder=cli.home))
    done = cli.run("import", "config.yaml")
    assert "warning[author/left-out]: models.llama3:1b: `concurrencyLimit`" in done.stderr
    assert "wrote launch.yaml: 2 servers, 1 warning" in done.stdout
    assert "plan/gpu-unused-layers" in done.stdout  # -ngl 99 on a machine without a card
    cli.run("--detach", *cli.ports("llama3-1b", "embed"))
    try:
        body = {"model": "llama3:1b", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        assert httpx.post(f"{cli.front}/v1/chat/completions", json=body, timeout=60).status_code == 200
        body = {"model": "embed", "input": "hi"}
        assert httpx.post(f"{cli.front}/v1/embeddings", json=body, timeout=60).status_code == 200
    finally:
        cli.run("stop", "--all")


def test_what_is_refused(cli: Cli) -> None:
    """Nothing is written, and nothing overwritten."""
    (cli.home / "a.sh").write_text("echo hello\n")
    (cli.home / "b.sh").write_text("llama-server -m b.gguf\n")
    (cli.home / "c.yaml").write_text("a: 1\n")
    for words in (("absent.sh",), ("a.sh",), ("c.yaml",), ("b.sh", "--as", "toml")):
        assert "error[author/not-imported]" in cli.run("import", *words, code=2).stderr
    assert not (cli.home / "launch.yaml").exists()
    assert "b: b.gguf" in cli.run("import", "b.sh", "--dry-run").stdout
    (cli.home / "launch.yaml").write_text("# mine\n")
    assert "stays as it is" in cli.run("import", "b.sh", code=2).stderr
    assert (cli.home / "launch.yaml").read_text() == "# mine\n"


def test_models_that_are_elsewhere(cli: Cli) -> None:
    """The file is written, and what the plan lacks is said."""
    (cli.home / "b.sh").write_text("llama-server -m /nowhere/b.gguf\n")
    done = cli.run("import", "b.sh")
    assert (cli.home / "launch.yaml").exists()
    assert "catalog/missing-file" in done.stderr


def test_files_from_elsewhere(cli: Cli) -> None:
    """A byte order mark and CRLF are no part of the text; a pipe does not hold it up."""
    (cli.home / "a.ini").write_bytes(b"\xef\xbb\xbf[*]\r\nc = 5\r\n[a]\r\nmodel = /a.gguf\r\njinja\r\n")
    (cli.home / "b.sh").write_bytes(b"M=/b.gguf\r\nllama-server \\\r\n -m $M\r\n")
    text = cli.run("import", "a.ini", "b.sh", "--dry-run").stdout
    assert yaml.safe_load(text)["servers"] == {"a": {"file": "/a.gguf", "tier": "warm", "n_ctx": 5}, "b": "/b.gguf"}
    os.mkfifo(cli.home / "pipe.sh")
    assert "no regular file" in cli.run("import", "pipe.sh", code=2).stderr
    (cli.home / "list.yaml").write_text("services: [a]\n")
    assert "no llama-server is started" in cli.run("import", "list.yaml", "--as", "compose", code=2).stderr
