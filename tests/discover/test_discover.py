"""Models in the stores of other programs, and llama-servers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.catalog import Headers
from launcher.discover import FoundModels, find_engines, find_models, usual_places
from tests.tinymodels import write_parts

Tiny = Callable[..., Path]


def found(home: Path, *named: Path) -> FoundModels:
    """What is found in a home."""
    return find_models(named, usual_places({"HOME": str(home)}), Headers())


def test_every_store(tmp_path: Path, tiny_models: Tiny) -> None:
    """Hugging Face (links to blobs, parts), llama.cpp, LM Studio, Ollama with its projector; each file once."""
    blobs = tmp_path / ".cache/huggingface/hub/models--a--b/blobs"
    snapshot = blobs.parent / "snapshots/0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    shutil.copy(tiny_models("llama"), blobs / "e3b0")
    (snapshot / "Llama-f16.gguf").symlink_to("../../blobs/e3b0")
    older = blobs.parent / "snapshots/0000"
    older.mkdir()
    (older / "Llama-f16.gguf").symlink_to("../../blobs/e3b0")
    split = tmp_path / ".cache/llama.cpp"
    split.mkdir()
    first = write_parts("qwen3", split)[0]
    studio = tmp_path / ".lmstudio/models/org/repo"
    studio.mkdir(parents=True)
    shutil.copy(tiny_models("qwen2"), studio / "Qwen2-f16.gguf")
    (studio / "Qwen2-f16.gguf.part").write_text("half")
    store = tmp_path / ".ollama/models"
    (store / "blobs").mkdir(parents=True)
    shutil.copy(tiny_models("qwen2vl"), store / "blobs/sha256-aa")
    shutil.copy(tiny_models("qwen2vl-projector"), store / "blobs/sha256-bb")
    manifest = store / "manifests/registry.ollama.ai/library/see/7b"
    manifest.parent.mkdir(parents=True)
    kinds = {"aa": "model", "bb": "projector", "cc": "template"}
    layers = [{"mediaType": f"application/vnd.ollama.image.{k}", "digest": f"sha256:{d}"} for d, k in kinds.items()]
    manifest.write_text(json.dumps({"layers": layers}))
    models = found(tmp_path)
    assert models.findings == ()
    assert {(f.place, f.name) for f in models.files} == {
        ("Hugging Face cache", "Llama-f16"),
        ("llama.cpp cache", first.stem),
        ("LM Studio", "Qwen2-f16"),
        ("Ollama", "see-7b"),
    }
    (ollama,) = (f for f in models.files if f.place == "Ollama")
    assert ollama.projector == str(store / "blobs/sha256-bb")


def test_what_cannot_be_read_is_said_and_the_rest_is_found(tmp_path: Path, tiny_models: Tiny) -> None:
    """A broken file, a link to nothing, a folder that is a loop, a folder that is not there, a broken manifest."""
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(tiny_models("llama"), folder / "good.gguf")
    (folder / "broken.gguf").write_bytes(b"GGUF\x03")
    (folder / "gone.gguf").symlink_to("nowhere")
    (folder / "loop").symlink_to(".")
    manifest = tmp_path / ".ollama/models/manifests/h/n/m/t"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{")
    models = found(tmp_path, folder, tmp_path / "absent")
    assert [Path(f.path).name for f in models.files] == ["good.gguf"]
    assert {f.severity for f in models.findings} == {"warning"}
    text = " ".join(f.message for f in models.findings)
    for name in ("broken.gguf", "gone.gguf", "absent", str(manifest)):
        assert name in text
    assert found(tmp_path, folder / "good.gguf").files == models.files


def test_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, with the system's reason; root may list everything, so that is made here."""
    (tmp_path / "locked").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (finding,) = found(tmp_path, tmp_path).findings
    assert (finding.code, "Permission denied" in finding.message) == ("author/unreadable", True)


def test_engines(tmp_path: Path) -> None:
    """One's own before the packaged one; what does not run is passed over, and the same file counts once."""
    for name, says in (("a", "echo 'version: 7000 (abc123)'"), ("b", "exit 1"), ("c", "echo 'version: 1 (a)'")):
        (tmp_path / name).mkdir()
        binary = tmp_path / name / "llama-server"
        binary.write_text(f"#!/bin/sh\n{says}\n")
        binary.chmod(0o755)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/llama-server").symlink_to(tmp_path / "a/llama-server")
    env = {"HOME": str(tmp_path), "PATH": ":".join(str(tmp_path / name) for name in "abd")}
    engines = find_engines(env, packaged=str(tmp_path / "c/llama-server"), built=None)
    assert [(e.binary, e.build, e.packaged) for e in engines] == [
        (str(tmp_path / "a/llama-server"), 7000, False),
        (str(tmp_path / "c/llama-server"), 1, True),
    ]


def test_a_real_engine(llama_server: Path) -> None:
    """The packaged one says its version."""
    (engine,) = find_engines({"PATH": "", "HOME": "/nowhere"}, packaged=str(llama_server), built=None)
    assert engine.packaged
