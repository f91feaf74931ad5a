"""The real llama-server takes what is rendered, and says back the slots and contexts that were planned."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.engine import probe
from launcher.ir.config import DraftConfig, NgramConfig
from launcher.ir.dialect import Dialect
from tests.render.conftest import get_json, running
from tests.render.plan_factory import render_argv, server_plan

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "unified, quantised K and V, locked mapping": {
        "kv_unified": True,
        "n_ctx_per_slot": 1024,
        "flash_attention": "on",
        "cache_type_k": "q8_0",
        "cache_type_v": "q8_0",
        "load_mode": "mmap+mlock",
        "cpus": "0",
    },
    "no mapping, no repacking, no attention kernels, no caches": {
        "load_mode": "none",
        "repack": False,
        "flash_attention": "off",
        "cache_ram_mib": 0,
        "context_checkpoints": 0,
        "kv_offload": False,
        "reasoning": "off",
        "extra_args": ("--timeout", "100", "--seed", "-1"),
    },
    "draft and n-grams": {
        "draft": DraftConfig(model="a", quantization="b", n_max=8, n_min=1, p_min=0.5, cache_type_k="q8_0"),
        "ngram": NgramConfig(kind="mod", n_max=12),
        "flash_attention": "on",
    },
    "embedder": {"embedding": True, "pooling": "mean", "n_batch": 512},
}


@pytest.fixture(scope="module")
def engine(llama_server: Path) -> tuple[str, Dialect]:
    """The embedded binary, and what it says of itself."""
    return str(llama_server), probe(llama_server, None)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_server_agrees(
    shape: str, engine: tuple[str, Dialect], smollm2: Path, free_port: Callable[[], int], tmp_path: Path
) -> None:
    """Every flag is accepted; /v1/models, /props and /slots show name, model, slots, context and speculation."""
    changes = SHAPES[shape]
    draft_path = str(smollm2) if "draft" in changes else None
    server = server_plan(
        **{"n_ctx": 1024, "n_ctx_per_slot": 512, **changes},
        model_path=str(smollm2),
        draft_path=draft_path,
        port=free_port(),
    )
    argv, findings = render_argv(server, engine[1], engine[0])
    assert findings == ()
    url, log = f"http://127.0.0.1:{server.port}", tmp_path / "log"
    with running(argv, url, log):
        models, props, slots = (get_json(f"{url}/{path}") for path in ("v1/models", "props", "slots"))
        posted = subprocess.run(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-d", "{}", f"{url}/props"],
            capture_output=True,
            text=True,
            check=True,
        )
    assert models["data"][0]["id"] == server.name
    assert (props["total_slots"], props["model_path"]) == (server.settings.slots, str(smollm2))
    assert [slot["n_ctx"] for slot in slots] == [server.settings.n_ctx_per_slot] * server.settings.slots
    assert {slot["speculative"] for slot in slots} == {bool(server.draft or server.settings.ngram)}
    assert posted.stdout == "501"
    assert "\x1b[" not in log.read_text()
    assert "deprecated" not in log.read_text().replace("or deprecated --webui/--no-webui", "")


@pytest.mark.parametrize(
    "extra", [("--lookup",), ("--draft-max", "24"), ("--jinja", "false"), ("--timeout=3",), ("--timeout",)]
)
def test_what_we_refuse_the_server_refuses(
    extra: tuple[str, ...], engine: tuple[str, Dialect], free_port: Callable[[], int]
) -> None:
    """Errors about extra_args are true of the binary: it exits 1 before it looks at the model."""
    server = server_plan(extra_args=extra, port=free_port(), model_path="/nonexistent.gguf")
    argv, findings = render_argv(server, engine[1], engine[0])
    assert [f.severity for f in findings] == ["error"]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert result.returncode == 1
    assert "nonexistent" not in result.stderr
