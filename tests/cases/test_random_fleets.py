"""Whatever fleet is written, the compiler gives a plan or findings: never a crash, never a trace."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.base.programs import NOT_HERE
from launcher.compiler import Compilation, compile_fleet, render
from launcher.errors import Finding, LaunchError
from launcher.hardware import check_host, describe_checks
from launcher.ir.config import (
    HardwareConfig,
    OrchestrationConfig,
    RoutingConfig,
    ServerConfig,
    ServiceConfig,
    StatedTotals,
)
from launcher.plan import plan_fleet
from launcher.render import render_commands
from tests.cases.case import ROOT
from tests.cases.conftest import host_facts

EXAMPLES = int(os.environ.get("LAUNCH_FUZZ_EXAMPLES", "30"))
"""Whole compiles; `make fuzz` runs thousands."""

MODELS = ("dense", "small", "experts", "hybrid", "latent", "encoder", "seeing", "nothing")
NAMES = ("a", "b", "c", "d")
NUMBERS = st.one_of(
    st.integers(-2, 20), st.sampled_from([256, 257, 4096, 5000, 16384, 131072, 2**31, 2**63 - 1]), st.none()
)
WORDS = st.sampled_from(
    ["", "on", "off", "auto", "all", "q8_0", "q4_0", "f16", "mmap", "mlock", "0-3", "0-7,16-23", "x", "hot", "cold"]
)
FLAGS = st.sampled_from(["--lookup", "--prio", "2", "-c", "1024", "--embedding", "false", "--override-kv", "a=int:1"])
SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(MODELS),
    "quantization": st.sampled_from(("q8_0", "q8_0", "q8_0", "f16", "q4_k_m", "zip")),
    "tier": st.sampled_from(("hot", "hot", "warm", "cold", "tepid")),
    "port": st.integers(8998, 9004),
    "extra_args": st.lists(FLAGS, max_size=4),
    "after": st.lists(st.sampled_from(NAMES), max_size=2),
    "devices": st.lists(st.sampled_from(("cuda0", "cuda1")), max_size=2),
    "roles": st.lists(st.sampled_from(("chat", "code", "a")), max_size=2),
    "draft": st.fixed_dictionaries({"model": st.sampled_from(MODELS), "quantization": st.just("q8_0")}),
    "ngram": st.fixed_dictionaries({"kind": st.sampled_from(("simple", "mod", "cache", "map-k"))}),
    "numa": st.fixed_dictionaries(
        {
            "policy": st.sampled_from(("bind", "interleave", "preferred")),
            "nodes": st.lists(st.integers(0, 3), max_size=2),
        }
    ),
    "waive": st.lists(st.sampled_from(("cpu/oversubscribed", "plan/moe-experts")), max_size=1),
    "env": st.dictionaries(st.sampled_from(("LLAMA_ARG_CTX_SIZE", "X")), WORDS, max_size=2),
    "request_defaults": st.dictionaries(WORDS, NUMBERS, max_size=2),
    "n_ctx": st.none(),
    "engine": st.sampled_from(("default", "default", "default", "gone")),
}
FIELDS = tuple(msgspec.structs.fields(ServerConfig))
BARE = {"available_bytes": 0, "cpus": "", "cpu_quota": 0.5, "gpus": [], "nodes": [], "memlock_bytes": 0}
MISSING = dict.fromkeys(("numactl", "taskset"), NOT_HERE)
HOSTS = (host_facts({}), host_facts({**BARE, "missing_programs": MISSING, "disk_free": {"/": 0}}))
"""A host that has what the base of all cases says, and one that has nothing."""


def value_of(field: Any) -> st.SearchStrategy[Any]:
    """Mostly values of the field's own kind, sometimes a number or a word of another."""
    if field.name in SPECIAL:
        return SPECIAL[field.name]
    if isinstance(field.default, bool):
        return st.one_of(st.booleans(), st.just("yes"))
    if isinstance(field.default, int | float):
        return st.one_of(st.integers(0, 64), st.integers(0, 64), NUMBERS)
    return st.one_of(NUMBERS, WORDS)


@st.composite
def servers(draw: st.DrawFn) -> dict[str, Any]:
    """One server: a model, and a handful of fields."""
    chosen = draw(st.lists(st.sampled_from(FIELDS), max_size=6, unique_by=lambda f: f.name))
    whole = {"model": "dense", "quantization": "q8_0", "tier": "hot", "slots": 1, "threads": 2}
    return whole | {field.name: draw(value_of(field)) for field in chosen}


def pieces(kind: type) -> st.SearchStrategy[dict[str, Any]]:
    """Some fields of a config type with numbers, words and lists of them."""
    value = st.one_of(NUMBERS, WORDS, st.lists(st.sampled_from(NAMES), max_size=3), st.dictionaries(WORDS, NUMBERS))
    return st.dictionaries(st.sampled_from([f.name for f in msgspec.structs.fields(kind)]), value, max_size=2)


FLEETS = st.fixed_dictionaries(
    {"servers": st.dictionaries(st.sampled_from(NAMES), servers(), max_size=4)},
    optional={
        "routing": pieces(RoutingConfig),
        "orchestration": pieces(OrchestrationConfig),
        "stated": pieces(StatedTotals),
        "hardware": pieces(HardwareConfig),
        "services": st.dictionaries(st.sampled_from(NAMES), pieces(ServiceConfig), max_size=2),
    },
)


LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "tier": st.sampled_from(("hot", "hot", "warm", "cold")),
    "model": st.sampled_from(MODELS[:-1]),
    "slots": st.integers(1, 9),
    "n_ctx_per_slot": st.sampled_from((256, 500, 4096, 16384, 131072)),
    "kv_unified": st.booleans(),
    "n_batch": st.sampled_from((32, 512, 2048)),
    "n_ubatch": st.sampled_from((16, 512, 4096)),
    "flash_attention": st.sampled_from(("on", "off", "auto")),
    "cache_type_k": st.sampled_from(("f16", "q8_0", "q4_0")),
    "cache_type_v": st.sampled_from(("f16", "q8_0", "iq4_nl")),
    "cache_ram_mib": st.sampled_from((-1, 0, 1024, 8192)),
    "context_checkpoints": st.sampled_from((0, 32)),
    "embedding": st.booleans(),
    "load_mode": st.sampled_from(("mmap", "mlock", "mmap+mlock", "none", "dio")),
    "repack": st.booleans(),
    "projector": st.booleans(),
    "experts_used": st.integers(1, 9),
    "devices": st.sampled_from(([], ["cuda0"])),
    "n_gpu_layers": st.sampled_from((0, 3, "all", "auto")),
    "n_cpu_moe": st.integers(0, 4),
    "kv_offload": st.booleans(),
    "threads": st.integers(1, 40),
    "cpus": st.sampled_from(("0-7", "0-7,16-23", "8-15", "40")),
    "numa": SPECIAL["numa"],
    "draft": st.fixed_dictionaries({"model": st.sampled_from(("small", "dense")), "quantization": st.just("q8_0")}),
    "ngram": SPECIAL["ngram"],
    "exclusive": st.sampled_from(("x", "y")),
    "default": st.booleans(),
    "stall_timeout_s": st.sampled_from((1, 60, 900)),
    "reasoning": st.sampled_from(("on", "off", "auto")),
    "extra_args": SPECIAL["extra_args"],
    "waive": st.just([{"cpu/oversubscribed": "drawn"}]),
}
"""Values that the config stage takes: what is wrong with these fleets, later stages must say."""


@st.composite
def likely_fleets(draw: st.DrawFn) -> dict[str, Any]:
    """A fleet whose every value is of its kind, on a machine of some size."""
    whole = {"model": "dense", "quantization": "q8_0", "tier": "hot", "slots": 1, "threads": 2}
    made: dict[str, Any] = {}
    for name in NAMES[: draw(st.integers(1, 4))]:
        fields = draw(st.lists(st.sampled_from(sorted(LIKELY)), max_size=8, unique=True))
        made[name] = whole | {field: draw(LIKELY[field]) for field in fields} | {"port": 9001 + len(made)}
    hardware = {
        "ram_bytes": draw(st.sampled_from(("1GiB", "64GiB", "64GiB"))),
        "memlock_bytes": draw(st.sampled_from((None, 65536, "64GiB"))),
        "gpus": {"cuda0": {"vram_bytes": draw(st.sampled_from(("1GiB", "24GiB")))}},
    }
    return {"servers": made, "hardware": hardware}


def outcome(tree: dict[str, Any], directory: Path) -> Compilation | tuple[Finding, ...]:
    """Compile a fleet as its file: what came out of it, or why nothing did."""
    path = directory / "case" / "random.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text("# @package _global_\n" + yaml.safe_dump(tree), encoding="utf-8")
    try:
        whole = compile_fleet(["+case=random"], config_dirs=(directory, ROOT / "conf"))
        manifest = render(whole).manifest
    except LaunchError as error:
        return error.findings
    for facts in HOSTS:
        assert all(f.code and f.key and f.message for f in check_host(manifest, facts))
        assert all(subject and found for subject, found in describe_checks(manifest, facts))
    return whole


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=FLEETS)
def test_a_plan_or_findings(tree: dict[str, Any], tmp_path_factory: Any) -> None:
    """Each finding has a code, a key, a message and a place."""
    result = outcome(tree, tmp_path_factory.getbasetemp())
    assert result
    for finding in result if isinstance(result, tuple) else result.findings:
        assert finding.code.count("/") == 1
        assert finding.message
        assert finding.location is not None, finding


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=likely_fleets())
def test_a_plan_or_findings_of_likely_fleets(tree: dict[str, Any], tmp_path_factory: Any) -> None:
    """The same of fleets that the config stage takes: nothing is refused for a value's kind."""
    result = outcome(tree, tmp_path_factory.getbasetemp())
    findings = result if isinstance(result, tuple) else result.findings
    assert not {f.code for f in findings} & {"config/type", "config/choice", "config/missing", "config/unknown-key"}
    assert all(f.message and f.location for f in findings)


@settings(max_examples=EXAMPLES * 25, deadline=None, suppress_health_check=list(HealthCheck))
@given(fleet=st.dictionaries(st.sampled_from(NAMES), servers(), min_size=1))
def test_a_plan_or_findings_of_values(fleet: dict[str, dict[str, Any]]) -> None:
    """The same behind the config stage, which refuses much: a thousand fleets through plan and render alone."""
    whole = base()
    decoded = {}
    for name, fields in fleet.items():
        try:
            decoded[name] = msgspec.convert(fields | {"port": fields.get("port", 9001)}, ServerConfig)
        except msgspec.ValidationError:
            continue
    config = msgspec.structs.replace(whole.composed.fleet, servers=decoded)
    planned = plan_fleet(config, whole.catalog, deployment="random", input_digest="")
    _, findings = render_commands(planned, {**whole.engines, "gone": whole.engines["default"]})
    assert all(f.code and f.key and f.message for f in (*planned.findings, *findings))


_KEPT: list[Compilation] = []


def base() -> Compilation:
    """A fleet of every model of the cases, compiled once."""
    if not _KEPT:
        one = {f"+servers.m{i}": m for i, m in enumerate(MODELS[:-1])}
        overrides = [
            f"{key}={{model:{model},quantization:q8_0,tier:hot,slots:1,threads:1,port:{9100 + i}}}"
            for i, (key, model) in enumerate(one.items())
        ]
        _KEPT.append(compile_fleet(overrides, config_dirs=(ROOT / "conf",)))
    return _KEPT[0]
