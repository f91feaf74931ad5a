"""Whole fleets proven by the real llama-server, with no model file and no GPU on this machine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from launcher.catalog.declared import synthesise
from launcher.catalog.mix import find_mix
from launcher.catalog.sparse import write_sparse
from launcher.compiler import Compilation, compile_fleet
from launcher.errors import EngineError
from launcher.ir.architectures import complete
from launcher.ir.catalog import Catalog, FilePart, ModelFile
from launcher.ir.config import ArchitectureConfig
from launcher.ir.proof import Difference, ServerProof
from launcher.plan.proof import is_mismatch, proof_findings
from launcher.proving import prove, prove_fleet
from launcher.sizes import MIB
from tests.catalog.architectures import PUBLISHED
from tests.plan import fleets


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Proofs are kept in a folder of the test's own."""
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def codes(compiled: Compilation) -> tuple[set[str], tuple[ServerProof, ...]]:
    """Codes that a proof finds, and its servers."""
    proof, found = prove(compiled)
    return {f.code for f in found}, proof.servers


@pytest.mark.parametrize(
    ("hardware", "profile", "servers"),
    [("epyc", "full", 16), ("sovereign", "three_tier", 6)],
    ids=["epyc", "three-tier"],
)
def test_packaged_fleets_are_proven(no_orphans: None, state: Path, hardware: str, profile: str, servers: int) -> None:
    """K/V, recurrent state, output and weights agree, compute is never under; the second time nothing is run."""
    compiled = compile_fleet([f"hardware={hardware}", f"profile={profile}"])
    found, first = codes(compiled)
    assert found <= {"plan/proof-other-binary"}
    assert len(first) == servers
    assert all(server.failure is None and not server.cached for server in first)
    assert {d.component for server in first for d in server.differences} >= {"model", "compute", "kv", "output"}
    _, again = codes(compiled)
    assert all(server.cached for server in again)
    assert [s.differences for s in again] == [s.differences for s in first]


def test_gpus_that_are_absent_are_stood_in_for(no_orphans: None) -> None:
    """Layers and their K/V are proven on the device that the plan put them on."""
    _, servers = codes(compile_fleet(["hardware=sovereign", "profile=three_tier"]))
    coder = next(server for server in servers if server.name == "qwen_coder_32b")
    assert coder.stand_ins == ("cuda0",)
    on_card = {d.component: d for d in coder.differences if d.device == "cuda0"}
    assert on_card["model"].proven_bytes == pytest.approx(18508 * MIB, rel=0.01)


def test_a_wrong_architecture_is_found(no_orphans: None, tmp_path: Path) -> None:
    """A plan with other heads than the header has: K/V and weights differ, and more than planned is an error."""
    right = fleets.model_file(fleets.LLAMA_8B, name="tiny", quantization="q8_0", kind="q8_0", embedding="q8_0")
    real = msgspec.structs.replace(right, header_digest="real")
    path = tmp_path / "real.gguf"
    write_sparse(real, path)
    wrong = msgspec.structs.replace(
        right,
        source="gguf",
        architecture=fleets.with_fields(fleets.LLAMA_8B, n_head_kv=4),
        parts=(FilePart(path=str(path), size_bytes=path.stat().st_size),),
        header_digest="wrong",
    )
    proof, found = prove_fleet(fleets.fleet({"one": fleets.server(n_ctx=4096)}), fleets.catalog(wrong))
    assert [(f.severity, f.code) for f in found if "kv" in f.message] == [("error", "plan/proof-mismatch")]
    assert proof.servers[0].header == "file"


def test_a_refused_dry_run_is_a_finding(no_orphans: None) -> None:
    """An architecture that this build does not know: its last words are in the message, and nothing is kept."""
    model = fleets.model_file(fleets.with_fields(fleets.TINY, arch="nonesuch"))
    fleet = fleets.fleet({"one": fleets.server()})
    for _ in range(2):
        proof, found = prove_fleet(fleet, fleets.catalog(model))
        assert proof.servers[0].failure is not None
        assert not proof.servers[0].cached
        assert (
            "unknown model architecture: 'nonesuch'" in next(f for f in found if f.code == "plan/proof-failed").message
        )


def test_an_unknown_binary_is_an_error() -> None:
    """`--prove-with` something that is not there."""
    with pytest.raises(EngineError, match="no llama-server at"):
        prove_fleet(fleets.fleet({"one": fleets.server()}), fleets.catalog(), binary="/nonexistent/llama-server")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_known_architecture_has_a_header_that_loads(no_orphans: None, name: str) -> None:
    """Synthesised headers are such that the server sizes them, and as the closed form says."""
    architecture = msgspec.convert(PUBLISHED[name][0], ArchitectureConfig)
    model = synthesised(architecture)
    repack = architecture.arch != "deepseek2"  # this build aborts on latent attention with AMX
    config = fleets.server(n_ctx=4096, slots=2, embedding=not architecture.causal, repack=repack)
    proof, found = prove_fleet(fleets.fleet({"one": config}), Catalog(files={"tiny@q8_0": model}))
    assert proof.servers[0].failure is None
    assert [f.message for f in found if f.code == "plan/proof-mismatch"] == []


def synthesised(architecture: ArchitectureConfig) -> ModelFile:
    """A model file of the catalogue's tensors in Q8_0."""
    mix = find_mix("Q8_0")
    assert mix is not None
    tensors, _ = synthesise(architecture, mix)
    completed = complete(architecture)
    part = FilePart(path="/models/tiny.gguf", size_bytes=sum(t.size_bytes for t in tensors))
    return ModelFile(
        model="tiny",
        quantization="q8_0",
        source="declared",
        architecture=completed,
        tensors=tensors,
        parts=(part,),
        header_digest=repr(architecture),
    )


@pytest.mark.parametrize(
    ("component", "predicted", "proven", "severity"),
    [
        ("kv", 100, 100, None),
        ("kv", 100, 100 + MIB, "error"),
        ("kv", 100 + MIB, 100, "warning"),
        ("compute", 100 * MIB, 50 * MIB, None),
        ("compute", 50 * MIB, 51 * MIB, "error"),
        ("draft", 900 * MIB, 800 * MIB, None),
        ("model", 1000 * MIB, 1005 * MIB, None),
        ("model", 1000 * MIB, 1100 * MIB, "error"),
    ],
)
def test_what_is_a_mismatch(component: str, predicted: int, proven: int, severity: str | None) -> None:
    """Exact components to the log's rounding, bounds in one direction only."""
    difference = Difference(device="ram", component=component, predicted_bytes=predicted, proven_bytes=proven)
    found = proof_findings(ServerProof(name="one", differences=(difference,)))
    assert is_mismatch(difference) == (severity is not None)
    assert [f.severity for f in found] == ([severity] if severity else [])
