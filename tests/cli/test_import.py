"""`launch import`: a file of another program, as a fleet that is planned and runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml

from launcher.cli.importing import import_files
from launcher.discover import FoundEngine
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


def test_the_engine_is_the_one_that_was_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], llama_server: Path
) -> None:
    """The build that sees somebody's card is not exchanged for the packaged one; a second one is said."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "llama-server").symlink_to(llama_server)
    line = "%s/llama-server -m x.gguf --port 9001\n"
    script = tmp_path / "start.sh"

    def engines(text: str) -> object:
        script.write_text(text)
        assert import_files([script], file=None, kind=None, dry_run=True) == 0
        return yaml.safe_load(capsys.readouterr().out).get("engines")

    mine = {"default": {"binary": f"{tmp_path}/one/llama-server", "dialect": "probe"}}
    assert engines(line % f"{tmp_path}/one") == mine
    monkeypatch.setenv("PATH", f"{tmp_path}/one", prepend=":")
    assert engines("llama-server -m x.gguf\n") == mine
    script.write_text(f"{line}{line}" % (f"{tmp_path}/one", f"{tmp_path}/two"))
    import_files([script], file=None, kind=None, dry_run=True)
    assert f"{tmp_path}/two/llama-server runs some of them" in capsys.readouterr().err
    monkeypatch.setattr("launcher.cli.init.best_engine", lambda _: FoundEngine(binary="/b/llama-server", build=9))
    assert engines(line % "/nowhere") == {"default": {"binary": "/b/llama-server", "dialect": "probe"}}
    monkeypatch.setattr("launcher.cli.init.best_engine", lambda _: FoundEngine(binary="/b", build=9, packaged=True))
    assert engines(line % "/nowhere") is None


def test_what_a_script_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags and cards by variables count from there on, as in front of the command."""
    script = tmp_path / "start.sh"
    exports = "export CUDA_VISIBLE_DEVICES=0 LLAMA_ARG_CTX_SIZE=4096\nMODEL=x.gguf\n"
    script.write_text(f"llama-server -m a.gguf\n{exports}/nowhere/llama-server -m $MODEL\n")
    assert import_files([script], file=None, kind=None, dry_run=True) == 0
    done = capsys.readouterr()
    found = yaml.safe_load(done.out)["servers"]
    assert (found["a"], found["x"]["n_ctx"], "env" in found["x"]) == ("a.gguf", 4096, False)
    assert "line 4: CUDA_VISIBLE_DEVICES=0" in done.err
