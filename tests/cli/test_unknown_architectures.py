"""Architectures that a build knows and launch does not: a bound that says so, in `plan` and `inspect` alike."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.catalog.architecture import widened
from launcher.catalog.declared import synthesise
from launcher.catalog.files import describe
from launcher.catalog.mix import MIXES
from launcher.catalog.sparse import write_sparse
from launcher.ir.architectures import complete
from launcher.ir.catalog import FilePart, ModelFile
from launcher.ir.plan import DeviceMemory
from launcher.plan import estimate, settle
from launcher.plan.memory.layout import layers
from tests.cli.conftest import Cli
from tests.plan import drawn
from tests.plan.fleets import QWEN3_30B, TINY, hardware, planned, server, with_fields

NEW = (
    *("bailingmoe3", "clef", "dots3note", "glm5-next", "granite_swa", "hrm_text", "hy_v4", "kimi-k3", "maple"),
    *("minimax-01", "qwen4exp", "spark2_5"),
)
"""What b11434 knows and b10434 does not."""
KINDS = ("llama", "qwen3moe", "granitehybrid", "deepseek2")


def written(name: str, kind: str, folder: Path) -> Path:
    """A file of architecture `name` with the tensors and keys of a `kind`."""
    arch = drawn.architecture(random.Random(5), kind)  # noqa: S311 - the same draw again
    tensors, findings = synthesise(arch, MIXES["Q4_K_M"])
    assert tensors, findings
    path = folder / f"{name}-{kind}.gguf"
    size = sum(t.size_bytes for t in tensors)
    model = ModelFile(
        model=name,
        quantization="q4_k_m",
        source="declared",
        architecture=msgspec.structs.replace(complete(arch), arch=name),
        tensors=tensors,
        parts=(FilePart(path=str(path), size_bytes=size),),
    )
    write_sparse(model, path)
    return path


def sized(path: Path) -> DeviceMemory:
    """What a server of the file takes."""
    model = describe(str(path))
    return estimate(model, settle(server(n_ctx=8192, slots=4), model, hardware()).settings)[0]


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_architecture_is_bounded_by_what_it_resembles(tmp_path: Path, name: str, kind: str) -> None:
    """Never less than the known architecture with the same keys, in any component."""
    known, new = sized(written(kind, kind, tmp_path)), sized(written(name, kind, tmp_path))
    assert new.compute_bytes > known.compute_bytes
    assert new.kv_bytes >= known.kv_bytes
    assert new.recurrent_bytes >= known.recurrent_bytes
    assert new.model_bytes >= known.model_bytes > 0


@pytest.mark.parametrize("name", NEW)
def test_plan_and_inspect_say_so_alike(cli: Cli, tmp_path: Path, name: str) -> None:
    """The same note with the same figures."""
    path = written(name, "qwen3moe", tmp_path)
    (told,) = cli.json("inspect", str(path), "n_ctx=8192", "slots=4")["findings"]
    model = msgspec.structs.replace(describe(str(path)), model="new", quantization="q8_0")
    plan = planned({"s": server(model="new", n_ctx=8192, slots=4)}, model)
    (noted,) = [f for f in plan.findings if f.code == "plan/compute-bound"]
    assert (told["code"], told["severity"]) == (noted.code, noted.severity)
    assert told["message"] == noted.message
    assert f"the graph of {name} is not known" in noted.message


def test_a_known_architecture_is_inspected_without_a_note(cli: Cli, tmp_path: Path) -> None:
    """Nothing to say."""
    assert cli.json("inspect", str(written("qwen3moe", "qwen3moe", tmp_path)), "n_ctx=8192")["findings"] == []


@pytest.mark.parametrize(
    ("values", "field", "at_least"),
    [
        ({"kda.head_dim": 128}, "ssm_d_inner", 32 * 128),
        ({"attention.recurrent_layers": (True, False)}, "ssm_d_state", 128),
        ({"attention.indexer.key_length": 128}, "key_length", 256),
        ({"hyper_connection.count": 4}, "n_deepstack", 3),
        ({"hyper_connection.count": 1}, "n_deepstack", 0),
        ({}, "ssm_d_inner", 0),
    ],
)
def test_keys_of_new_mechanisms_are_counted(values: dict[str, Any], field: str, at_least: int) -> None:
    """Linear attention, an indexer's keys, several residual streams."""
    arch = widened(with_fields(QWEN3_30B, arch="new"), {f"new.{key}": value for key, value in values.items()})
    assert getattr(arch, field) >= at_least
    assert bool(at_least) == (arch != with_fields(QWEN3_30B, arch="new"))


def test_states_and_keys_are_both_counted_where_nothing_says_which() -> None:
    """A hybrid that does not list its layers: each may be either."""
    arch = widened(with_fields(TINY, arch="new", key_length=16), {"new.kda.head_dim": 16})
    kinds = layers(arch)
    assert kinds.full == kinds.recurrent == (0, 1)
