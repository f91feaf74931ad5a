"""Sparse files: what is written is what our own reader finds."""

from __future__ import annotations

import resource
from pathlib import Path

import msgspec
import pytest

from launcher.catalog.declared import synthesise
from launcher.catalog.files import describe
from launcher.catalog.mix import find_mix
from launcher.catalog.sparse import write_sparse
from launcher.ir.architectures import complete
from launcher.ir.catalog import FilePart, ModelFile
from launcher.ir.config import ArchitectureConfig

from .architectures import PUBLISHED

DISK = 2 * 1024 * 1024
NOT_WRITTEN = {"n_merges", "tokenizer", "tokenizer_pre", "bos_token_id", "pooling", "n_expert_used_min", "n_ff"}
"""Fields that a dry run does not need, and n_ff, which some loaders read as the experts' width."""


def published(name: str) -> ModelFile:
    """A published model as it is declared."""
    fields, mix_name, _ = PUBLISHED[name]
    architecture = complete(msgspec.convert(fields, ArchitectureConfig))
    mix = find_mix(mix_name)
    assert mix is not None
    tensors, _ = synthesise(architecture, mix)
    part = FilePart(path="absent.gguf", size_bytes=0)
    return ModelFile(
        model="m", quantization="q", source="declared", architecture=architecture, tensors=tensors, parts=(part,)
    )


def test_a_length_that_the_system_refuses_is_said_of_the_file(tmp_path: Path) -> None:
    """As on file systems, and under limits, for which a model is too long."""
    path, (soft, hard) = tmp_path / "sparse.gguf", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024 * 1024, hard))
    try:
        with pytest.raises(OSError, match=r"sparse\.gguf"):
            write_sparse(published(next(iter(PUBLISHED))), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", PUBLISHED)
def test_header_comes_back(tmp_path: Path, name: str) -> None:
    """Same architecture, same tensors, the file's right length, next to no disk."""
    model = published(name)
    architecture, tensors = model.architecture, model.tensors
    path = tmp_path / "sparse.gguf"
    write_sparse(model, path)
    read = describe(str(path))
    assert {t.name: (t.type, t.shape) for t in read.tensors} == {t.name: (t.type, t.shape) for t in tensors}
    assert path.stat().st_size >= sum(t.size_bytes for t in tensors)
    assert path.stat().st_blocks * 512 < DISK
    for field in set(architecture.__struct_fields__) - NOT_WRITTEN:
        mine, theirs = getattr(architecture, field), getattr(read.architecture, field)
        assert mine == theirs or not mine, field
