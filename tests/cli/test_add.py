"""`launch add` and `launch remove`: one server more or less, from this machine or from a hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launcher.cli.hub import choose_files
from tests.cli.conftest import Cli
from tests.cli.hub import Hub

Tiny = Callable[..., Path]
VISION, PROJECTOR = "Qwen2.5-VL-7B-Instruct-f16.gguf", "mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf"


@pytest.fixture
def models(cli: Cli, tiny_models: Tiny) -> Path:
    """A folder with a chat, a model that sees, and an embedder."""
    folder = cli.home / "models"
    folder.mkdir()
    named = {"Llama-f16.gguf": "llama", VISION: "qwen2vl", PROJECTOR: "qwen2vl-projector", "bge-f16.gguf": "bert"}
    for name, arch in named.items():
        shutil.copy(tiny_models(arch), folder / name)
    return folder


def servers(cli: Cli) -> dict[str, dict[str, object]]:
    """What the fleet file says."""
    found: dict[str, dict[str, object]] = yaml.safe_load((cli.home / "launch.yaml").read_text())["servers"]
    return found


def test_one_by_one_and_away_again(cli: Cli, models: Path) -> None:
    """The first makes the file; its projector comes along; a folder brings the rest; what was removed is gone."""
    cli.run("add", f"models/{VISION}", "--name", "eyes", "--role", "look")
    assert servers(cli)["eyes"]["projector"] == f"~/models/{PROJECTOR}"
    assert servers(cli)["eyes"]["aliases"] == ["look"]
    path = cli.home / "launch.yaml"
    path.write_text(path.read_text().replace("servers:", "# mine\nservers:"))
    cli.run("add", "models")
    assert set(servers(cli)) == {"eyes", "llama", "bge"}
    assert "# mine" in path.read_text()
    assert [s["name"] for s in cli.json("plan")["servers"]] == ["eyes", "bge", "llama"]
    text = path.read_text()
    assert "already" in cli.run("add", "models").stdout
    cli.run("remove", "llama")
    assert set(servers(cli)) == {"eyes", "bge"}
    cli.run("add", "models/Llama-f16.gguf")
    assert sorted(path.read_text().splitlines()) == sorted(text.splitlines())
    assert cli.run("add", "models/Llama-f16.gguf", "--dry-run").returncode == 0
    path.unlink()
    cli.run("add", *(str(file) for file in models.iterdir()))  # as a shell spells models/*
    assert set(servers(cli)) == {"qwen2-5-vl-7b-instruct", "llama", "bge"}


def test_faces(cli: Cli, models: Path) -> None:
    """Further models over one server, each with its request values; the plan routes them, the file is a good one."""
    cool, quick = "cool,temperature=0.2,top_k=20", "quick:no,chat_template_kwargs.enable_thinking=false"
    cli.run("add", "models/Llama-f16.gguf", "--face", cool, "--face", quick, "--face", "plain")
    assert servers(cli)["llama"]["faces"] == {
        "cool": {"request_defaults": {"temperature": 0.2, "top_k": 20}},
        "quick:no": {"request_defaults": {"chat_template_kwargs": {"enable_thinking": False}}},
        "plain": {},
    }
    text = (cli.home / "launch.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=/")
    cli.run("plan")
    for wrong in ("x,temperature", ",a=1", "x,a=1,a.b=2", "x,a=[", "x,.a=1"):
        assert "error[author/usage]" in cli.run("add", "models/bge-f16.gguf", "--face", wrong, code=2).stderr
    assert "--face is for one" in cli.run("add", "models", "--face", "x", code=2).stderr
    assert (cli.home / "launch.yaml").read_text() == text


def test_what_cannot_be_added_or_removed(cli: Cli, models: Path) -> None:
    """Each with a way on, and the file as it was."""
    cli.run("add", "models/Llama-f16.gguf")
    path = cli.home / "launch.yaml"
    text = path.read_text()
    assert "error[author/no-models]" in cli.run("add", "models/absent.gguf", code=3).stderr
    assert "error[author/no-models]" in cli.run("add", f"models/{PROJECTOR}", code=3).stderr
    assert "it has llama" in cli.run("remove", "lama", code=2).stderr
    assert "--name is for one" in cli.run("add", "models", "--name", "x", code=2).stderr
    assert "error[author/usage]" in cli.run("add", "hf:nonsense", code=2).stderr
    assert path.read_text() == text
    path.write_text("servers: {a: models/Llama-f16.gguf}\n")
    assert "lines of its own" in cli.run("add", "models/bge-f16.gguf", code=2).stderr
    path.write_text("servers: [\n")
    assert "launch.yaml:2:1: error[config/yaml]" in cli.run("add", "models/bge-f16.gguf", code=2).stderr


def test_from_a_hub(cli: Cli, models: Path) -> None:
    """The quantization that was named with its projector, into the cache; a token goes to the hub and nowhere else."""
    files = {VISION: (models / VISION).read_bytes(), PROJECTOR: (models / PROJECTOR).read_bytes(), "x-Q8_0.gguf": b""}
    with Hub("org/see-GGUF", files) as hub:
        cli.env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1"}
        done = cli.run("add", "hf:org/see-GGUF:F16")
        assert "hf_secret" not in done.stdout + done.stderr + (cli.home / "launch.yaml").read_text()
        assert any("hf_secret" in token for _, _, token in hub.asked)
        (name,) = servers(cli)
        assert "mmproj" in str(servers(cli)[name]["projector"])
        cli.run("plan")
        missing = cli.run("add", "hf:org/see-GGUF:Q2_K", code=3).stderr
        assert "x-Q8_0.gguf" in missing
        assert "error[author/no-repository]" in cli.run("add", "hf:org/other", code=3).stderr


def test_a_download_that_breaks_off_goes_on_where_it_was(cli: Cli, models: Path) -> None:
    """The library writes 10 MiB at a time; what is on the disk is not fetched again, and the whole is checked."""
    data = (models / "Llama-f16.gguf").read_bytes() + bytes(12 << 20)
    with Hub("org/repo", {"m-F16.gguf": data}, cut=11 << 20) as hub:
        cli.env |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        cli.run("add", "hf:org/repo")
        assert max(hub.began) >= 10 << 20
    assert len(servers(cli)) == 1


def test_a_file_that_is_not_what_the_hub_states(cli: Cli, models: Path) -> None:
    """It is removed, and nothing is added."""
    with Hub("org/repo", {"m-Q8_0.gguf": (models / "Llama-f16.gguf").read_bytes()}, lie="m-Q8_0.gguf") as hub:
        cli.env |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        assert "error[author/checksum]" in cli.run("add", "hf:org/repo", code=3).stderr
    assert not (cli.home / "launch.yaml").exists()
    assert [p for p in cli.home.rglob("m-Q8_0.gguf") if p.exists()] == []


def test_without_a_network(cli: Cli) -> None:
    """It says so, and what works without one."""
    cli.env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_XET": "1"}
    done = cli.run("add", "hf:org/repo", code=6)
    assert "error[author/offline]" in done.stderr
    assert "launch add FILE.gguf" in done.stderr


def test_no_room_for_it(cli: Cli) -> None:
    """Before the first byte comes."""

    class Big(Hub):
        def info(self) -> dict[str, object]:
            """A file larger than any disk."""
            sibling = {"rfilename": "m-Q8_0.gguf", "size": 2**60, "blobId": "b"}
            return {"id": "org/repo", "modelId": "org/repo", "sha": "0" * 40, "siblings": [sibling], "private": False}

    with Big("org/repo", {}) as hub:
        cli.env |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        assert "error[author/no-room]" in cli.run("add", "hf:org/repo", code=6).stderr
        assert not any("resolve" in path for _, path, _ in hub.asked)


def test_without_the_library(cli: Cli) -> None:
    """What to install."""
    hidden = cli.home / "site"
    hidden.mkdir()
    (hidden / "huggingface_hub.py").write_text("raise ImportError\n")
    cli.env |= {"PYTHONPATH": str(hidden)}
    done = cli.run("add", "hf:org/repo", code=6)
    assert "error[author/no-hub]" in done.stderr
    assert "python -m pip install huggingface_hub" in done.stderr.replace("python3 ", "python ")


@pytest.mark.parametrize(
    ("names", "quantization", "wanted"),
    [
        (("a-Q4_K_M.gguf", "a-Q8_0.gguf"), None, ("a-Q4_K_M.gguf",)),
        (("a-Q4_K_M.gguf", "a-Q8_0.gguf"), "q8_0", ("a-Q8_0.gguf",)),
        (("a-Q4_K_M.gguf",), "Q4_K", ()),
        (("only.gguf",), None, ("only.gguf",)),
        (("one.gguf", "two.gguf"), None, ()),
        (
            (
                "q/a-Q4_K_M-00002-of-00002.gguf",
                "q/a-Q4_K_M-00001-of-00002.gguf",
                "q/mmproj-BF16.gguf",
                "q/mmproj-F16.gguf",
            ),
            "Q4_K_M",
            ("q/a-Q4_K_M-00001-of-00002.gguf", "q/a-Q4_K_M-00002-of-00002.gguf", "q/mmproj-F16.gguf"),
        ),
    ],
)
def test_which_files_of_a_repository(names: tuple[str, ...], quantization: str | None, wanted: tuple[str, ...]) -> None:
    """One quantization with all its parts and one projector; nothing where it is not plain which."""
    assert choose_files(names, quantization) == wanted


def test_what_a_config_names(cli: Cli, models: Path) -> None:
    """`pull` brings it to the path that the config has, from whichever folder of the repository; then it is planned."""
    fleet = "models: {m: {files: {f16: {path: here/%s, repo: org/repo}}}}\nservers: {chat: {model: m}}\n"
    (cli.home / "launch.yaml").write_text(fleet % VISION)
    with Hub("org/repo", {f"deep/{VISION}": (models / VISION).read_bytes()}) as hub:
        cli.env |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        assert f"here/{VISION}  from org/repo" in cli.run("pull", "--dry-run").stdout
        assert not (cli.home / "here").exists()
        cli.run("pull")
        assert (cli.home / "here" / VISION).read_bytes() == (models / VISION).read_bytes()
        assert "is here" in cli.run("pull").stdout
        cli.run("plan")
        (cli.home / "launch.yaml").write_text(fleet % "none.gguf")
        assert "org/repo has no none.gguf" in cli.run("pull", code=3).stderr
    (cli.home / "launch.yaml").write_text((fleet % "none.gguf").replace(", repo: org/repo", ""))
    assert "models.m.files.f16.repo=ORG/REPO" in cli.run("pull", code=2).stderr
    assert "downloaded by: launch add hf:ORG/REPO" in cli.run("pull", "qwen3", code=2).stderr  # as ollama has it


@pytest.mark.parametrize(
    ("models", "code"),
    [
        ("{7: {files: {q: {path: x.gguf}}}}", 2),
        ("{m: {files: [1]}}", 2),
        ("{m: {files: {q: {path: x, parts: two}}}}", 2),
        ("[m]", 2),
        ("{m: {files: {q: {path: 7}}}}", 2),
        ("\nservers: {chat: {file: none.gguf}}", 3),
    ],
)
def test_a_config_that_is_wrong_names_nothing(cli: Cli, models: str, code: int) -> None:
    """It is said what is wrong with it; that every file is here would be no answer."""
    (cli.home / "launch.yaml").write_text(f"models: {models}\n")
    done = cli.run("pull", "--dry-run", code=code)
    assert "error[c" in done.stderr
    assert done.stdout == ""


def test_however_a_file_is_named(cli: Cli, models: Path) -> None:
    """By a path with `..`, by a link, without its ending: as itself, and once; what is no file is said."""
    (cli.home / "sub").mkdir()
    (cli.home / "link.gguf").symlink_to("models/Llama-f16.gguf")
    shutil.copy(models / "bge-f16.gguf", cli.home / "sha256-0123")
    cli.run("add", "sub/../models/Llama-f16.gguf")
    assert "already" in cli.run("add", "models/../models/Llama-f16.gguf").stdout
    assert "link: " in cli.run("add", "link.gguf").stdout
    assert "sha256-0123: " in cli.run("add", "sha256-0123").stdout
    assert [s["file"] for s in servers(cli).values()] == ["~/models/Llama-f16.gguf", "~/link.gguf", "~/sha256-0123"]
    os.mkfifo(cli.home / "pipe.gguf")
    assert "named pipe" in cli.run("add", "pipe.gguf", code=3).stderr
    assert "no model is named" in cli.run("add", "", code=2).stderr
    assert len(servers(cli)) == 3


def test_a_name_that_is_taken_otherwise(cli: Cli, models: Path) -> None:
    """By an alias of another: it gets a number, and what is said is the name that it got."""
    cli.run("add", "models/Llama-f16.gguf")
    shutil.copy(models / "bge-f16.gguf", models / "chat.gguf")
    assert "chat-2: " in cli.run("add", "models/chat.gguf").stdout
    refused = cli.run("add", "models/bge-f16.gguf", "--name", "a b", code=2).stderr
    assert "launch.yaml:" in refused
    assert "/tmp/launch-init" not in refused
    assert list(servers(cli)) == ["llama", "chat-2"]
