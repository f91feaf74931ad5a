"""gemma3n, whose layers share K/V and each get more than the residual stream, as the server's own dry run has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.catalog.files import describe
from launcher.config.composing import server_from_fields
from launcher.plan.proof import is_mismatch
from launcher.proving import prove_file
from tests.plan import fleets
from tests.tinymodels import Shape
from tests.tinymodels.shared import write_gemma3n

SIZES = {"n_vocab": 512, "n_head_kv": 2, "n_swa": 512, "tied": True}


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        (Shape(n_layer=22, n_embd=256, n_head=4, head_dim=64, n_ff=512, **SIZES), ["n_ctx=8192", "slots=2"]),
        (Shape(n_layer=35, n_embd=512, n_head=8, head_dim=64, n_ff=2048, **SIZES), ["n_ctx=8192", "slots=2"]),
        (
            Shape(n_layer=30, n_embd=1024, n_head=8, head_dim=128, n_ff=4096, **SIZES),
            ["n_ctx=4096", "slots=1", "n_ubatch=128", "flash_attention=off"],
        ),
    ],
)
def test_shared_kv_is_exact_and_compute_not_under(
    shape: Shape, fields: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first twenty layers keep K/V; what every layer gets of each token is in the compute buffer."""
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / "state"))
    file = describe(str(write_gemma3n(tmp_path / "shared.gguf", shape)))
    proof, findings = prove_file(file, server_from_fields(fields), fleets.hardware())
    assert not [f for f in findings if f.severity == "error"]
    found = {d.component: d for server in proof.servers for d in server.differences}
    assert {"kv", "compute"} <= found.keys()
    assert found["kv"].predicted_bytes > 0
    assert not [d for d in found.values() if is_mismatch(d)]
