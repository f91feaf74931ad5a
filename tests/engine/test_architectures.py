"""Names of architectures, from a table laid out as compilers do and from the real library."""

from __future__ import annotations

from pathlib import Path

from launcher.engine import probe, recorded, recorded_names
from launcher.engine.probing import architectures

TABLE = b"\x7fELF\0neo-bert\0other\0clip\0llama\0rwkv6qwen2\0\0(unknown)\0general.type\0"


def test_a_table_and_the_tails_of_longer_strings() -> None:
    """What lies between the ends, and candidates that the linker merged into longer names."""
    assert architectures(TABLE, ("qwen2", "bert", "mamba")) == ("bert", "llama", "qwen2", "rwkv6qwen2")


def test_no_table_is_not_known() -> None:
    """Another program, an end without a beginning, nothing."""
    for data in (b"", b"\0llama\0", b"\0(unknown)\0"):
        assert architectures(data, ("llama",)) == ()


def test_recorded_builds_know_what_they_should() -> None:
    """Newer builds know more; none knows what nobody has invented."""
    known = [set(recorded(name).architectures) for name in recorded_names()]
    for names in known:
        assert {"llama", "bert", "qwen2", "qwen3moe", "qwen3next", "granitehybrid", "nemotron_h_moe"} <= names
        assert "frobnicator" not in names
    assert known[0] < known[1] < known[2]


def test_probing_finds_the_library_beside_the_binary(llama_server: Path) -> None:
    """The probed names are the recorded ones of that build."""
    assert probe(llama_server, None).architectures == recorded("b10068").architectures
