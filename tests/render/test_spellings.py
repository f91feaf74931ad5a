"""Meaning → flags: complete, in the words of each build, and refused where a build has none."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.engine import recorded, recorded_names
from launcher.engine.help import parse_help
from launcher.ir.config import DraftConfig, GpuConfig, NgramConfig, NumaConfig, ServerConfig
from launcher.ir.dialect import Dialect
from launcher.ir.plan import ServerPlan
from launcher.render.command import refusals
from launcher.render.spellings import NOT_FLAGS, TABLE, Placement
from tests.render.plan_factory import render_argv, server_plan

OLD_HELP = Path(__file__).parent.parent / "engine" / "help_b4000.txt"
DRAFT = {"draft": DraftConfig(model="a", quantization="b", n_max=24, n_min=1, p_min=0.75), "draft_path": "/d.gguf"}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gpu": {"devices": ("cuda0", "cuda1"), "n_gpu_layers": 99, "tensor_split": (3.0, 1.5), "n_cpu_moe": 4},
    "unified": {"kv_unified": True, "swa_full": True, "kv_offload": False, "repack": False},
    "draft": DRAFT,
    "both": {**DRAFT, "ngram": NgramConfig(kind="map-k", n_max=8)},
    "mod": {"ngram": NgramConfig(kind="mod", n_max=12)},
    "vision": {"projector_path": "/p.gguf", "experts_used": 4, "arch": "qwen3vlmoe"},
    "embedder": {"embedding": True, "pooling": "cls"},
    "reranker": {"embedding": True, "pooling": "rank"},
    **{mode: {"load_mode": mode} for mode in ("mmap", "mlock", "mmap+mlock", "none", "dio")},
    **{f"fa-{fa}": {"flash_attention": fa} for fa in (True, False)},
    "quiet": {"reasoning": "off"},
}


@pytest.fixture(scope="module")
def old() -> Dialect:
    """A build of late 2024."""
    return Dialect(name="b4000", version="", flags=parse_help(OLD_HELP.read_text()))


SILENT = {("engine/unknown-flag", "warning"), ("engine/unknown-flag", "note")}


def said(server: ServerPlan, dialect: Dialect) -> tuple[str, ...]:
    """Words after the binary; fails on a finding, but for what an old build is taken not to need."""
    argv, findings = render_argv(server, dialect, "llama-server")
    assert {(f.code, f.severity) for f in findings} <= SILENT
    assert not findings or dialect.name == "b4000"
    assert argv[0] == "llama-server"
    return argv[1:]


def value(words: tuple[str, ...], flag: str) -> str:
    """The word behind `flag`."""
    return words[words.index(flag) + 1]


def test_every_field_of_a_server_is_spelled_or_is_none_of_the_servers_business() -> None:
    """A new field of ServerConfig must be placed in the table or in NOT_FLAGS, in one of them only."""
    spelled = {meaning.key.partition(".")[0] for meaning in TABLE if meaning.key}
    assert spelled | NOT_FLAGS.keys() == set(ServerConfig.__struct_fields__)
    assert not spelled & NOT_FLAGS.keys()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_said_is_owned(shape: str) -> None:
    """Every flag that a row may write is among those that extra_args may not use (but --override-kv)."""
    server = server_plan(**SHAPES[shape])
    placement = Placement(devices=("CUDA0",), rpc=("h:1",))
    for meaning in TABLE:
        words = {w for a in meaning.spell(server, placement) for w in a if w.startswith("--")}
        assert words - {"--override-kv", "--reasoning-budget", *meaning.owns} == set()


@pytest.mark.parametrize("name", recorded_names())
@pytest.mark.parametrize("shape", SHAPES)
def test_each_recorded_build_takes_every_shape(name: str, shape: str) -> None:
    """No finding, and no word that the build refuses."""
    dialect = recorded(name)
    assert refusals(said(server_plan(**SHAPES[shape]), dialect), dialect.index()) == ()


@pytest.mark.parametrize("name", recorded_names())
def test_nothing_that_matters_is_left_to_the_build(name: str) -> None:
    """Defaults that changed between builds are all written out."""
    words = said(server_plan(), recorded(name))
    pinned = {
        "--ctx-size": "2048",
        "--parallel": "2",
        "--batch-size": "2048",
        "--ubatch-size": "512",
        "--flash-attn": "on",
        "--cache-type-k": "f16",
        "--cache-type-v": "f16",
        "--ctx-checkpoints": "32",
        "--cache-ram": "256",
        "--fit": "off",
        "--device": "none",
        "--n-gpu-layers": "0",
        "--threads": "2",
        "--threads-batch": "2",
        "--spec-type": "none",
        "--reasoning": "auto",
        "--alias": "frontdoor",
        "--host": "127.0.0.1",
        "--port": "8080",
        "--log-colors": "off",
    }
    assert {flag: value(words, flag) for flag in pinned} == pinned
    switches = {"--no-kv-unified", "--repack", "--kv-offload", "--slots", "--metrics", "--no-ui", "--no-warmup"}
    assert switches <= set(words)
    assert "--props" not in words


LOAD_MODES = {
    "mmap": ("--mmap", "--no-direct-io"),
    "mlock": ("--mlock", "--no-mmap"),
    "mmap+mlock": ("--mlock", "--mmap"),
    "none": ("--no-mmap", "--no-direct-io"),
    "dio": ("--direct-io", "--no-mmap"),
}


@pytest.mark.parametrize("mode", LOAD_MODES)
def test_load_mode_is_the_difference_between_the_real_builds(mode: str) -> None:
    """b10434 has --load-mode; b10068 and b10092 have the switches that it replaced, deprecated since."""
    server = server_plan(load_mode=mode)
    assert value(said(server, recorded("b10434")), "--load-mode") == mode
    switches = {"--mmap", "--no-mmap", "--mlock", "--direct-io", "--no-direct-io"}
    assert not switches & set(said(server, recorded("b10434")))
    for name in ("b10068", "b10092"):
        words = said(server, recorded(name))
        assert tuple(w for w in words if w in switches) == LOAD_MODES[mode]
        assert "--load-mode" not in words


def test_an_older_build_is_told_in_its_own_words(old: Dialect) -> None:
    """Flash attention as a switch, the draft without --spec-type, no words for what it does not have."""
    draft = {"draft": DraftConfig(model="a", quantization="b", n_max=24), "draft_path": "/d.gguf"}
    server = server_plan(flash_attention=True, load_mode="mmap+mlock", kv_offload=False, embedding=True, **draft)
    words = said(server, msgspec.structs.replace(old, flags=(*old.flags, *_kv_draft_flags())))
    following = dict(pairwise(words))
    assert following["--flash-attn"].startswith("--")
    assert following["--draft-max"] == "24"
    assert {"--mlock", "--no-kv-offload", "--embeddings", "--no-webui"} <= set(words)
    assert not {"--spec-type", "--fit", "--load-mode", "--kv-unified", "--repack", "--cache-ram"} & set(words)


def _kv_draft_flags() -> tuple[Any, ...]:
    """The KV types of the draft, which came a little later."""
    return parse_help(
        "-ctkd, --cache-type-k-draft TYPE        KV cache data type for K for the draft model\n"
        "-ctvd, --cache-type-v-draft TYPE        KV cache data type for V for the draft model\n"
    )


def test_flash_attention_off_says_nothing_where_it_is_a_switch(old: Dialect) -> None:
    """Leaving the switch out is off."""
    assert "--flash-attn" not in said(server_plan(flash_attention=False), old)


@pytest.mark.parametrize(
    ("changes", "key", "refused"),
    [
        ({"swa_full": True}, "swa_full", "--swa-full"),
        ({"repack": False}, "repack", "--no-repack"),
        ({"kv_unified": True}, "kv_unified", "--kv-unified"),
        ({"n_cpu_moe": 3}, "n_cpu_moe", "--n-cpu-moe"),
        ({"ngram": NgramConfig()}, "ngram", "--spec-type"),
        ({"projector_path": "/p.gguf"}, "projector", "--mmproj"),
        ({"load_mode": "dio"}, "load_mode", "--load-mode"),
        (DRAFT, "draft.cache_type_k", "--cache-type-k-draft"),
    ],
)
def test_a_choice_without_words_is_an_error_at_its_key(
    old: Dialect, changes: dict[str, Any], key: str, refused: str
) -> None:
    """The old build cannot be told; the finding names the key and every word that was tried."""
    _, findings = render_argv(server_plan(**changes), old, "llama-server")
    finding = next(f for f in findings if f.key == f"servers.frontdoor.{key}")
    assert (finding.code, finding.severity) == ("engine/unknown-flag", "error")
    assert any(refused in note for note in finding.notes)


def test_a_removed_flag_is_not_used(old: Dialect) -> None:
    """--draft-max is a word of the old build and a removed one of the new."""
    server = server_plan(**DRAFT)
    assert value(said(server, recorded("b10434")), "--spec-draft-n-max") == "24"
    assert "--draft-max" not in said(server, recorded("b10434"))
    only_removed = Dialect(
        name="x", version="", flags=tuple(f for f in recorded("b10434").flags if "--spec-draft-n-max" not in f.names)
    )
    finding = render_argv(server, only_removed, "b")[1][0]
    assert finding.key == "servers.frontdoor.draft.n_max"
    assert "was removed" in " ".join(finding.notes)


def test_draft_and_devices() -> None:
    """The draft goes to the server's devices, unless it shall have no layers there; `all` is more than any has."""
    on_host = DraftConfig(model="a", quantization="b", n_gpu_layers=0)
    gpu = server_plan(devices=("cuda1",), n_gpu_layers=99, draft=on_host, draft_path="/d.gguf")
    assert value(said(gpu, recorded("b10434")), "--spec-draft-device") == "none"
    offloaded = server_plan(devices=("cuda1",), n_gpu_layers=99, **DRAFT)
    words = said(offloaded, recorded("b10434"))
    assert (value(words, "--spec-draft-device"), value(words, "--spec-draft-ngl")) == ("CUDA1", "999")
    assert value(words, "--device") == "CUDA1"


@pytest.mark.parametrize(
    ("numa", "cpus", "prefix"),
    [
        (None, None, ()),
        (None, "0-3", ("taskset", "--cpu-list", "0-3")),
        (NumaConfig(policy="interleave"), None, ("numactl", "--interleave=all", "--")),
        (NumaConfig(policy="interleave", nodes=(0, 1)), None, ("numactl", "--interleave=0,1", "--")),
        (NumaConfig(policy="preferred", nodes=(1,)), None, ("numactl", "--preferred=1", "--")),
        (NumaConfig(policy="bind", nodes=(0,)), "0-47", ("numactl", "--physcpubind=0-47", "--membind=0", "--")),
    ],
)
def test_placement_prefix(numa: NumaConfig | None, cpus: str | None, prefix: tuple[str, ...]) -> None:
    """A prefix of numactl for memory (with CPUs), taskset for CPUs alone; the binary follows."""
    argv, findings = render_argv(server_plan(numa=numa, cpus=cpus), recorded("b10434"), "/opt/llama-server")
    assert findings == ()
    assert argv[: len(prefix) + 1] == (*prefix, "/opt/llama-server")


def gpu(backend: Any, endpoint: str | None = None) -> GpuConfig:
    """A device of `backend`."""
    return GpuConfig(backend=backend, vram_bytes=1, endpoint=endpoint)


def test_device_names() -> None:
    """Own names, positions among siblings, RPC by endpoint."""
    gpus = {"big": gpu("cuda"), "small": gpu("cuda"), "far": gpu("rpc", "10.0.0.2:50052"), "igpu": gpu("vulkan")}
    server = server_plan(devices=("small", "far", "igpu", "rocm1"), n_gpu_layers=9)
    argv, findings = render_argv(server, recorded("b10434"), "b", gpus)
    assert findings == ()
    assert value(argv, "--device") == "CUDA1,RPC0,Vulkan0,ROCm1"
    assert value(argv, "--rpc") == "10.0.0.2:50052"


def test_device_findings() -> None:
    """A device that hardware does not have; an RPC device without an endpoint."""
    server = server_plan(devices=("gpu7", "far"))
    _, findings = render_argv(server, recorded("b10434"), "b", {"far": gpu("rpc")})
    assert [(f.code, f.key) for f in findings] == [
        ("render/unknown-device", "servers.frontdoor.devices"),
        ("render/no-endpoint", "hardware.gpus.far.endpoint"),
    ]


@pytest.mark.parametrize("word", ["a\0b", "\ud800"])
def test_words_that_nothing_can_carry(word: str) -> None:
    """NUL and lone surrogates are findings, not tracebacks."""
    _, findings = render_argv(server_plan(model_path=f"/models/{word}"), recorded("b10434"), "b")
    assert [f.code for f in findings] == ["render/bad-character"]
