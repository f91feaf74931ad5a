"""`launch inspect` of several files, of folders, and for a machine that is not this one; in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launcher.cli.inspect import declare_files, inspect_files
from launcher.compiler import compile_fleet
from launcher.errors import ConfigError

Tiny = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, tiny_models: Tiny) -> Path:
    """A model, a damaged one, and what looks like a further part of a split one."""
    (tmp_path / "a.gguf").symlink_to(tiny_models("llama"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    (tmp_path / "b-00002-of-00002.gguf").write_bytes(b"GGUF")
    (tmp_path / "notes.txt").write_text("none")
    return tmp_path


def test_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each model under its name; a damaged one is a finding and does not end it."""
    code = inspect_files([str(folder)], [], as_json=False)
    shown = capsys.readouterr()
    assert code == 3
    assert str(folder / "a.gguf") in shown.out
    assert "layers" in shown.out
    assert "00002" not in shown.out
    assert "error[catalog/" in shown.err


def test_for_another_machine(tiny_models: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """Cards of the sizes that are named, as many layers on them as fit, and the verdict of each memory."""
    words = [str(tiny_models("llama")), str(tiny_models("bert")), "slots=1"]
    assert inspect_files(words, ["1GiB", "2GiB"], as_json=False) == 0
    shown = capsys.readouterr().out
    assert "card0: " in shown
    assert "of 1.9 GiB" in shown
    assert inspect_files(words, ["1GiB"], as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "launch.inspections/v1"
    assert [{m["device"] for m in file["memory"]} for file in document["files"]] == [{"ram", "card0"}, {"ram", "card0"}]
    # a card that is full before anything is on it keeps the model in RAM
    assert inspect_files(words[:1], ["1MiB"], as_json=True) == 0
    only = json.loads(capsys.readouterr().out)["memory"]
    assert next(m["model_bytes"] for m in only if m["device"] == "ram") > 0


@pytest.mark.parametrize(
    ("words", "vram"),
    [((), ()), (("slots=2",), ()), ((".",), ()), (("x.gguf",), ("much",)), (("x.gguf", "hardware=epyc"), ())],
)
def test_what_is_not_to_be_inspected(
    words: tuple[str, ...], vram: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sentence, with how it is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"GGUF files|inspect what|not a size|takes fields of a server"):
        inspect_files(words, vram, as_json=False)


@pytest.mark.parametrize("arch", ["qwen35moe", "deepseek2", "bert"])
def test_as_the_config_declares_it(
    arch: str, tmp_path: Path, tiny_models: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--yaml` pasted into a fleet file plans the same K/V, states, output and compute where the file is not."""
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / "state"))
    (there := tmp_path / "Tiny-2B-F16.gguf").write_bytes(tiny_models(arch).read_bytes())
    assert declare_files([str(there)]) == 0
    text = capsys.readouterr().out
    (name,) = yaml.safe_load(text)["models"]
    assert name == "tiny-2b"
    (quantization,) = yaml.safe_load(text)["models"][name]["files"]
    server = {"model": name, "quantization": quantization, "n_ctx": 1024, "slots": 1}
    fleet = tmp_path / "launch.yaml"
    fleet.write_text(text + yaml.safe_dump({"servers": {"a": server}}), encoding="utf-8")
    memory = []
    for _ in range(2):
        plan = compile_fleet([], config_dirs=[fleet]).plan
        assert [f.code for f in plan.findings if f.severity == "error"] == []
        memory.append(plan.servers[0].memory[0])
        there.unlink(missing_ok=True)
        (tmp_path / "launch.lock").unlink(missing_ok=True)
    for part in ("kv_bytes", "recurrent_bytes", "output_bytes", "compute_bytes"):
        assert getattr(memory[0], part) == getattr(memory[1], part), part


def test_what_cannot_be_declared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged file is a finding, the others are written."""
    assert declare_files([str(folder)]) == 3
    shown = capsys.readouterr()
    assert list(yaml.safe_load(shown.out)["models"]) == ["a"]
    assert "error[catalog/" in shown.err
