"""Two servers of one file: mapped pages count once, private ones twice, as the kernel's own PSS says."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from launcher.catalog.files import describe
from launcher.hardware import take_inventory
from launcher.ir.config import ServerConfig
from launcher.plan import plan_fleet
from launcher.sizes import KIB, MIB
from tests.tinymodels.running import RunningServer

from .asking import flags, load_words
from .fleets import catalog, fleet, hardware, server

TOLERANCE = 12 * MIB
"""Libraries that other processes share, and pages that no matrix needed at start."""


def smaps(pid: int, mapped: str) -> tuple[int, int]:
    """(Rss, Pss) in bytes of the mappings of the file at `mapped`."""
    rss = pss = 0
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(":")
        if " " in name or "-" in name:
            ours = line.endswith(mapped)
        elif ours and name == "Rss":
            rss += int(rest.split()[0]) * KIB
        elif ours and name == "Pss":
            pss += int(rest.split()[0]) * KIB
    return rss, pss


def anonymous(pid: int) -> int:
    """Bytes that the process shares with nobody."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    return int(next(line for line in text.splitlines() if line.startswith("Anonymous:")).split()[1]) * KIB


def file_and_private(path: Path, config: ServerConfig) -> tuple[int, int]:
    """File-backed and model bytes that the plan counts for two servers of `path`."""
    model = describe(str(path))
    named = {name: _named(config, model.model, model.quantization) for name in ("a", "b")}
    host = hardware(features=take_inventory().features)
    plan = plan_fleet(fleet(named, hardware=host), catalog(model), deployment="test", input_digest="")
    memory = [s.memory[0] for s in plan.servers]
    return sum(m.file_bytes for m in memory), sum(m.model_bytes for m in memory)


def _named(config: ServerConfig, model: str, quantization: str) -> ServerConfig:
    """`config` with the names that the file gives itself."""
    return msgspec.structs.replace(config, model=model, quantization=quantization)


@pytest.mark.parametrize("mode", ["mmap", "none"])
def test_two_replicas(llama_server: Path, smollm2: Path, tmp_path: Path, no_orphans: None, mode: str) -> None:
    """Under mmap both processes together hold the file once; under none each has its own copy."""
    config = server(n_ctx=1024, load_mode=mode, repack=False)
    path = tmp_path / "own.gguf"  # pages of the packaged file are shared with whoever else runs it now
    shutil.copyfile(smollm2, path)
    filed, weights = file_and_private(path, config)
    words: tuple[str | Path, ...] = ("-m", path, *flags(config), *load_words(llama_server, config.load_mode))
    with RunningServer(llama_server, *words) as one, RunningServer(llama_server, *words) as two:
        shares = [smaps(s.pid, path.name) for s in (one, two)]
        private = [anonymous(s.pid) for s in (one, two)]
    size = describe(str(path)).tensor_bytes
    if mode == "mmap":
        assert filed == weights == pytest.approx(size, rel=0.01)
        assert sum(pss for _, pss in shares) == pytest.approx(filed, abs=TOLERANCE)
        assert sum(rss for rss, _ in shares) == pytest.approx(2 * filed, abs=2 * TOLERANCE)
    else:
        assert filed == 0
        assert weights == pytest.approx(2 * size, rel=0.01)
        assert sum(pss for _, pss in shares) == 0
        assert min(private) >= size
