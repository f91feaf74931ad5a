"""The out-of-memory ladder in the manifest: whole command lines, priced, and none that was not compiled."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from launcher.compiler import compile_fleet, render
from launcher.errors import ConfigError
from launcher.manifest import argv_digest, encode_document
from launcher.render.fleet import Rendered
from launcher.runtime import read_deployment


@pytest.fixture(scope="module")
def sovereign() -> Rendered:
    """The packaged workstation."""
    return render(compile_fleet(["hardware=sovereign", "profile=three_tier"]))


def word_after(argv: tuple[str, ...], flag: str) -> str:
    """The value of a flag."""
    return argv[argv.index(flag) + 1]


def test_every_worker_has_its_rungs_whole_and_priced(sovereign: Rendered) -> None:
    """What a rung sets is in its command; it listens where its worker does; each is smaller than the one before."""
    units = {unit.name: unit for unit in sovereign.manifest.servers}
    assert {name: len(unit.rungs) for name, unit in units.items()} == {
        "router": 0,
        "validator": 0,
        "qwen_coder_32b": 4,
        "nemotron_30b": 4,
        "gpt_oss_20b": 1,
        "mythomax_13b": 4,
    }
    for name, unit in units.items():
        before = {need.device: need.peak_bytes + need.file_bytes for need in unit.memory}
        for rung in unit.rungs:
            assert rung.argv_digest == argv_digest(rung.argv)
            assert word_after(rung.argv, "--port") == str(unit.port)
            assert word_after(rung.argv, "--alias") == name
            assert word_after(rung.argv, "--model") == rung.model_path
            price = {need.device: need.peak_bytes + need.file_bytes for need in rung.memory}
            assert price["cuda0"] < before["cuda0"]
            before = price
        assert sovereign.routes.targets[name].rungs == len(unit.rungs)
    third = units["qwen_coder_32b"].rungs[2]
    assert third.label == "q3_k_m, n_ctx 2048, K q8_0, V q8_0, GPU layers 24"
    assert [word_after(third.argv, f) for f in ("--ctx-size", "--cache-type-k", "--n-gpu-layers")] == [
        "2048",
        "q8_0",
        "24",
    ]
    assert third.n_ctx_per_slot == 512


def test_the_rest_of_the_budget_is_what_the_pool_may_hold(sovereign: Rendered) -> None:
    """The manifest says what the worst set takes; the pool's 70 GB fit into what that leaves."""
    ram = next(device for device in sovereign.manifest.devices if device.kind == "ram")
    assert 0 < ram.worst_bytes < ram.budget_bytes
    assert ram.budget_bytes - ram.worst_bytes > 70e9


def test_a_rung_that_was_not_compiled_is_refused(sovereign: Rendered, tmp_path: Path) -> None:
    """A command smuggled into a rung is found by its digest, like that of a server."""
    (tmp_path / "routes.json").write_bytes(encode_document(sovereign.routes))
    servers = list(sovereign.manifest.servers)
    at = next(i for i, unit in enumerate(servers) if unit.rungs)
    evil = msgspec.structs.replace(servers[at].rungs[0], argv=("/bin/sh", "-c", "true"))
    servers[at] = msgspec.structs.replace(servers[at], rungs=(evil, *servers[at].rungs[1:]))
    fleet = msgspec.structs.replace(sovereign.manifest, servers=tuple(servers))
    (tmp_path / "fleet.json").write_bytes(encode_document(fleet))
    with pytest.raises(ConfigError, match="not what its digest says"):
        read_deployment(tmp_path)


def test_another_servers_model_may_be_the_rung() -> None:
    """`server: B` in a rung of A: B's model and settings at A's address, under A's name, in A's group."""
    overrides = ["hardware=sovereign", "profile=three_tier", "orchestration.oom_ladder=[{server: mythomax_13b}]"]
    rendered = render(compile_fleet(overrides))
    unit = next(unit for unit in rendered.manifest.servers if unit.name == "qwen_coder_32b")
    (rung,) = unit.rungs
    assert (rung.label, rung.model) == ("mythomax_13b", "mythomax_l2_13b q5_k_m")
    assert (word_after(rung.argv, "--alias"), word_after(rung.argv, "--port")) == (unit.name, str(unit.port))
