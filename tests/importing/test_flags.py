"""Command lines as fields: every spelling, old and new."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from launcher.config.schema import fields_of
from launcher.engine import recorded, recorded_names
from launcher.importing.command import server_of
from launcher.importing.flags import DOWNLOAD_FLAGS, FIELDS, IGNORED_FLAGS, OWN_FLAGS, SECRETS, SWITCHES, WITHOUT_EQUAL
from launcher.importing.result import Imported
from launcher.ir.config import DraftConfig, ServerConfig
from launcher.render.spellings import TABLE

FLAGS = {**recorded(recorded_names()[0]).index(), **recorded(recorded_names()[-1]).index()}
DOCS = Path(__file__).parents[2] / "docs/import.md"


def read(line: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Fields, and what was lost."""
    into = Imported()
    return server_of(shlex.split(line), "here", FLAGS, into), [f.message for f in into.findings]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("-m a.gguf -c 0 -np -1 -ngl 99 -fa", {"n_gpu_layers": "all", "flash_attention": "on"}),
        ("--model=a.gguf --ctx-size=8192 --parallel=2", {"n_ctx": 8192, "slots": 2}),
        ("-m a.gguf -fa off -ngl 20 --flash-attn auto", {"n_gpu_layers": 20, "flash_attention": "auto"}),
        ("-m a.gguf -c 4096", {"n_ctx": 4096, "slots": 4, "kv_unified": True}),
        ("-m a.gguf --mlock", {"load_mode": "mmap+mlock"}),
        ("-m a.gguf --mlock --no-mmap", {"load_mode": "mlock"}),
        ("-m a.gguf --no-mmap --jinja -cb --host 127.0.0.1", {"load_mode": "none"}),
        ("-m a.gguf --host /run/launch-a/http.sock --port 9001", {"host": "/run/launch-a/http.sock"}),
        ("-m a.gguf --reranking", {"embedding": True, "pooling": "rank"}),
        ("-m a.gguf -dev CUDA0,CUDA1 -ts 3,1", {"devices": ["cuda0", "cuda1"], "tensor_split": [3, 1]}),
        ("-m a.gguf -dev none", {"devices": []}),
        (
            "-m a.gguf -md d.gguf --draft-max 8 -ngld 99",
            {"draft": {"file": "d.gguf", "n_max": 8, "n_gpu_layers": "all"}},
        ),
        ("-m a.gguf --draft 8", {}),
        ("-m a.gguf --temp 0.7 --top-k 20 -s -1", {"request_defaults": {"temperature": 0.7, "top_k": 20, "seed": -1}}),
        (
            "-m a.gguf --chat-template chatml --no-context-shift",
            {"extra_args": ["--chat-template", "chatml", "--no-context-shift"]},
        ),
        (
            "-m a.gguf -sm row -dev CUDA0,CUDA1 -mg 1",
            {"split_mode": "row", "main_gpu": "cuda1", "devices": ["cuda0", "cuda1"]},
        ),
        ("-m a.gguf -mg 1 -ncmoe 3 -ncffn 2", {"n_cpu_moe": 3, "n_cpu_ffn": 2}),
        (
            r"-m a.gguf -ot 'blk\.\d+\.ffn_.*_exps\.=CPU' -ot attn=CUDA1 -cmoe",
            {"tensor_placement": [r"blk\.\d+\.ffn_.*_exps\.=cpu", "attn=cuda1"], "n_cpu_moe": 999},
        ),
        ("-m a.gguf --rpc 10.0.0.2:50052,10.0.0.3:50052", {"rpc": ["10.0.0.2:50052", "10.0.0.3:50052"]}),
        (
            "-m a.gguf --lora l.gguf --lora-scaled m.gguf:0.5,n.gguf:2",
            {"lora": [{"path": "l.gguf"}, {"path": "m.gguf", "scale": 0.5}, {"path": "n.gguf", "scale": 2.0}]},
        ),
        (
            "-m a.gguf --load-mode mlock -lzm on --reasoning off",
            {"load_mode": "mlock", "lazy_tensors": "on", "reasoning": "off"},
        ),
        ("-m a.gguf -dio --no-mmproj --fit-target 512", {"load_mode": "dio"}),
        ("-m a.gguf -mm p.gguf --no-mmproj-offload", {"projector": "p.gguf", "projector_device": "cpu"}),
        ("-m a.gguf -mm p.gguf -mmdev CUDA1", {"projector": "p.gguf", "projector_device": "cuda1"}),
        ("-m a.gguf --spec-type draft-mtp --draft-max 3", {"draft": {"kind": "mtp", "n_max": 3}}),
        (
            "-m a.gguf -md d.gguf --spec-type draft-eagle3,ngram-mod -devd none",
            {"draft": {"file": "d.gguf", "devices": [], "kind": "eagle3"}, "ngram": {"kind": "mod"}},
        ),
        ("-m a.gguf --spec-type ngram-simple --spec-ngram-simple-size-m 8", {"ngram": {"kind": "simple", "n_max": 8}}),
        ("-m a.gguf --spec-ngram-simple-size-m 8 --spec-type none", {}),
        ("-m a.gguf -a x,y --port 9001", {"aliases": ["x", "y"], "port": 9001}),
    ],
)
def test_what_a_command_line_says(line: str, wanted: dict[str, Any]) -> None:
    """The program's words as fields, and nothing lost."""
    fields, lost = read(f"llama-server {line}")
    assert lost == []
    assert fields == {"file": "a.gguf"} | wanted


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("llama-server -m a.gguf --frobnicate 3", "--frobnicate"),
        ("llama-server -m a.gguf --api-key sk-123", "secret"),
        ("llama-server -m a.gguf --host 0.0.0.0", "front"),
        ("llama-server -hf org/repo:Q4_K_M", "downloaded"),
        ("llama-server -m a.gguf -c many", "'many'"),
        ("llama-server -m a.gguf stray", "'stray'"),
        ("llama-server -m a.gguf --models-dir /m", "--models-dir /m"),
        ("llama-server -m a.gguf -sm row -mg 1", "--main-gpu 1"),
        ("llama-server -m a.gguf --spec-type telepathy", "telepathy"),
        ("llama-server -m a.gguf -mmu https://x.example/p.gguf", "downloaded"),
        ("numactl --cpunodebind=0 --membind=0 llama-server -m a.gguf", "numactl"),
        ("docker run -v /m:/models vllm/vllm-openai --model x", "vllm"),
        ("python -m vllm.entrypoints", "python"),
    ],
)
def test_what_has_no_equal_is_said(line: str, says: str) -> None:
    """One finding, which never repeats a secret."""
    _, lost = read(line)
    assert len(lost) == 1
    assert says in lost[0]
    assert "sk-123" not in lost[0]


def test_wrappers_are_taken_off() -> None:
    """Environment, `exec`, containers with their mounts and `LLAMA_ARG_…`."""
    fields, lost = read("B=0 exec env A=b /opt/llama-server-cuda -m a.gguf")
    assert (fields, lost) == ({"file": "a.gguf", "env": {"B": "0", "A": "b"}}, [])
    fields, lost = read("CUDA_VISIBLE_DEVICES=0 llama-server -m a.gguf")
    assert (fields, len(lost)) == ({"file": "a.gguf"}, 1)  # the plan names cards: such a variable is an error there
    assert read("env HIP_VISIBLE_DEVICES=-1 llama-server -m a.gguf") == ({"file": "a.gguf", "devices": []}, [])
    fields, lost = read(
        "docker run --rm --gpus all -p 1:8080 -v /srv/m:/models:ro -e LLAMA_ARG_CTX_SIZE=512 -e LLAMA_ARG_PARALLEL=1"
        " ghcr.io/ggml-org/llama.cpp:server-cuda -m /models/a.gguf --mmproj /models/p.gguf"
    )
    assert fields == {"file": "/srv/m/a.gguf", "projector": "/srv/m/p.gguf", "n_ctx": 512, "slots": 1}
    assert len(lost) == 1


def test_every_field_is_one() -> None:
    """What flags become is declared by the config types; what the newest build calls a switch is one here."""
    combined = {"mlock", "no_mmap", "rerank", "spec_type"}
    known = set(fields_of(ServerConfig)) | combined
    for field, _ in FIELDS.values():
        outer, _, inner = field.partition(".")
        assert outer in known
        assert outer != "draft" or inner in {*fields_of(DraftConfig), "file"}
    for spelling in {*FIELDS, *OWN_FLAGS, *SECRETS} & set(FLAGS):
        negated = spelling in FLAGS[spelling].negations
        arity = 0 if negated else FLAGS[spelling].arity
        assert (spelling in SWITCHES) == (arity == 0) or spelling in {"-fa", "--flash-attn"}, spelling


def test_the_table_in_the_documentation_has_every_flag() -> None:
    """docs/import.md: each spelling that becomes a field."""
    written = set(re.findall(r"`(--?[\w-]+)`", DOCS.read_text()))
    assert sorted(set(FIELDS) - written) == []


def test_nothing_that_the_compiler_decides_becomes_an_extra_argument() -> None:
    """It would be refused there (`engine/flag-conflict`): each such flag is a field, ours, or said with words."""
    spoken = {*FIELDS, *OWN_FLAGS, *IGNORED_FLAGS, *SECRETS, *DOWNLOAD_FLAGS, *WITHOUT_EQUAL}
    decided = {name for meaning in TABLE if not meaning.soft for name in meaning.owns}
    spellings = {s for name in decided if name in FLAGS for s in (*FLAGS[name].names, *FLAGS[name].negations)}
    assert len(spellings) > 90
    assert sorted(spellings - spoken) == []
