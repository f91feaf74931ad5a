"""Plan and binary on servers that nobody would write: drawn ones, and those of which one was found to be wrong."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from launcher.ir.catalog import Catalog
from launcher.ir.config import DraftConfig
from launcher.ir.proof import Difference, ServerProof
from launcher.plan.builds import loads_nextn
from launcher.plan.proof import proof_findings
from launcher.proving.runs import in_order, names_of
from launcher.sizes import GIB
from tests.plan import drawn, fleets
from tests.plan.asking import number

from .odd import disagreements, draw, file_of

BUILDS = tuple(filter(None, os.environ.get("LAUNCH_BUILDS", "").split(":")))
FIRST = int(os.environ.get("LAUNCH_FUZZ_SEED", "0"))
COUNT = int(os.environ.get("LAUNCH_FUZZ_SHAPES", "186"))
CARD: dict[str, Any] = {"devices": ("cuda0",), "n_gpu_layers": "all", "repack": False, "n_ctx": 4096}
LFM2 = {"n_layer": 3, "n_head": 8, "n_head_kv": (0, 4, 0), "n_embd": 512, "key_length": 64, "value_length": 64}
MANY = {"n_expert": 40, "n_embd": 1408, "n_ff_exp": 96, "n_layer": 4}
FOUND: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "the embedding of an encoder is its output, too": ("gemma-embedding", {}, {**CARD, "embedding": True, "slots": 2}),
    "a rule moves both": ("gemma", {"n_vocab": 30000}, {**CARD, "tensor_placement": ("token_embd=cuda0",)}),
    "a rule moves both to the host": ("gemma", {"n_vocab": 30000}, {**CARD, "tensor_placement": ("token_embd=cpu",)}),
    "not loaded by this build": ("glm4moe", {"n_layer_nextn": 1}, {**CARD, "draft": DraftConfig(kind="mtp", n_max=2)}),
    "keys of an indexer on the host": ("deepseek32", {}, {**CARD, "kv_offload": False, "n_ctx": 40000}),
    "experts of the host's last layer": ("qwen3moe", MANY, {**CARD, "experts_used": 29, "n_gpu_layers": 3}),
    "attention away from its layer": (
        "qwen3moe",
        {"n_layer": 4},
        {**CARD, "n_gpu_layers": 4, "tensor_placement": ("output=cuda0",), "n_ctx": 70000},
    ),
    "a draft on the card that has nothing of the model": (
        "llama",
        {"n_vocab": 30000},
        {**CARD, "devices": ("cuda1", "cuda0"), "split_mode": "none", "draft": ("cuda0",)},
    ),
    "attention of the host's layers": ("lfm2", LFM2, {**CARD, "n_gpu_layers": 2}),
    "a draft on the host": ("llama", {"n_vocab": 30000}, {**CARD, "draft": ()}),
    "many slots' outputs, which no table has": ("llama", {"n_vocab": 90000}, {"slots": 16, "repack": False}),
}
"""Architecture, its sizes, and the server's fields; `draft`: the devices of a small llama."""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proofs are kept in a folder of the test's own."""
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / "state"))


def test_what_was_found(no_orphans: None, llama_server: Path) -> None:
    """Each of these was planned wrong, or could not be proven, before it was mended."""
    files, servers = [], {}
    for i, (name, sizes, fields) in enumerate(FOUND.values()):
        arch = fleets.with_fields(drawn.architecture(random.Random(5), name), **sizes)  # noqa: S311 - the same again
        files.append(file_of(arch, f"m{i}"))
        own = dict(fields)
        if isinstance(devices := own.get("draft"), tuple):
            small = drawn.architecture(random.Random(6), "llama")  # noqa: S311 - the same again
            files.append(file_of(fleets.with_fields(small, n_vocab=arch.n_vocab), f"d{i}"))
            own["draft"] = DraftConfig(model=f"d{i}", quantization="q8_0", devices=devices)
        servers[f"s{i}"] = fleets.server(**own, model=f"m{i}")
    models = Catalog(files={f"{file.model}@{file.quantization}": file for file in files})
    assert disagreements(servers, models, llama_server, number(llama_server)) == []


def test_a_card_that_only_the_draft_has_is_stood_in_for(no_orphans: None, llama_server: Path) -> None:
    """Alone in its fleet: nobody else names the card."""
    arch = fleets.with_fields(fleets.TINY, n_vocab=1000)
    models = Catalog(files={f"{name}@q8_0": file_of(arch, name) for name in ("big", "little")})
    draft = DraftConfig(model="little", quantization="q8_0", devices=("cuda1",))
    servers = {"a": fleets.server(**CARD, model="big", draft=draft)}
    assert disagreements(servers, models, llama_server, number(llama_server)) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("build", ["embedded", *BUILDS])
def test_odd_servers(no_orphans: None, llama_server: Path, build: str) -> None:
    """Every architecture with fields drawn against each other: never more than planned, and the rest exact."""
    binary = llama_server if build == "embedded" else Path(build)
    servers, models = draw(range(FIRST, FIRST + COUNT), number(binary))
    assert disagreements(servers, models, binary, number(binary)) == []


def test_who_loads_layers_for_further_tokens() -> None:
    """For `draft-mtp`, by architecture and build (dry runs); of a build that nobody has seen the larger counts."""
    seen = {("glm4moe", 10434): False, ("glm4moe", 11434): True, ("glm-dsa", 10068): False, ("glm-dsa", 10434): True}
    seen |= {("qwen35", 10068): True, ("glm4moe", 10930): True, ("glm4moe", 0): True, ("nobody", 10068): True}
    for (name, build), loaded in seen.items():
        arch = fleets.with_fields(fleets.TINY, arch=name, n_layer_nextn=1)
        assert loads_nextn(arch, build, drafts=True) is loaded, (name, build)
        assert loads_nextn(arch, build, drafts=False) is (name == "qwen35"), (name, build)


def test_a_mismatch_shows_by_how_much() -> None:
    """Two figures that differ by less than their unit are said in a smaller one."""
    off = Difference(device="ram", component="compute", predicted_bytes=GIB, proven_bytes=GIB + 700 * 1024)
    (found,) = proof_findings(ServerProof(name="a", header="file", differences=(off,)))
    assert "1024.00 MiB is planned, but the server itself says 1024.68 MiB" in found.message


def test_devices_are_told_apart_by_their_names() -> None:
    """Of a rendered command line the order counts, not that of the names; a draft's own device comes after them."""
    words = ("llama-server", "--device", "CUDA1,CUDA0", "--spec-draft-device", "CUDA2")
    assert in_order(words, ("cuda0", "cuda1", "cuda2")) == ("cuda1", "cuda0", "cuda2")
    assert names_of(words, ("cuda1", "cuda0"), ("cuda2",)) == {"CUDA1": "cuda1", "CUDA0": "cuda0", "CUDA2": "cuda2"}
    assert in_order(words, ("big", "small")) == ("big", "small")
    assert names_of(("x", "--device", "none"), ()) == {}
