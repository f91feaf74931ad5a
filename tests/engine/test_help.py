"""Parsing `--help`: real builds, an older layout of flags, and any text that common_arg::to_string can write."""

from __future__ import annotations

import subprocess
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.engine import recorded
from launcher.engine.help import parse_help
from launcher.ir.dialect import Flag

OLD_HELP = (Path(__file__).parent / "help_b4000.txt").read_text()


@pytest.fixture(scope="module")
def real() -> dict[str, Flag]:
    """Spelling → flag of the newest recorded build."""
    return recorded("b10434").index()


@pytest.fixture(scope="module")
def old() -> dict[str, Flag]:
    """Spelling → flag of a build from before flash attention took a value."""
    return {name: flag for flag in parse_help(OLD_HELP) for name in (*flag.names, *flag.negations)}


def test_every_entry_of_the_real_help_is_parsed(llama_server: Path) -> None:
    """As many flags as lines that begin an entry, and no spelling twice."""
    text = subprocess.run([llama_server, "--help"], capture_output=True, text=True, check=True).stdout
    flags = parse_help(text)
    entries = [line for line in text.splitlines() if line.startswith("-") and not line.startswith("----")]
    spellings = [name for flag in flags for name in (*flag.names, *flag.negations)]
    assert len(flags) == len(entries)
    assert len(spellings) == len(set(spellings))
    assert not [name for name in spellings if not name.startswith("-") or " " in name]


@pytest.mark.parametrize(
    ("name", "arity", "choices"),
    [
        ("--threads", 1, ()),
        ("--swa-full", 0, ()),
        ("--control-vector-layer-range", 2, ()),
        ("--flash-attn", 1, ("on", "off", "auto")),
        ("--fit", 1, ("on", "off")),
        ("--pooling", 1, ("none", "mean", "cls", "last", "rank")),
        ("--load-mode", 1, ("auto", "none", "mmap", "mlock", "mmap+mlock", "dio")),
        ("--cache-type-k", 1, ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")),
        ("--numa", 1, ("distribute", "isolate", "numactl")),
        ("--device", 1, ()),
        ("--poll", 1, ()),
        ("--spec-draft-override-tensor", 1, ()),
    ],
)
def test_arity_and_choices(real: dict[str, Flag], name: str, arity: int, choices: tuple[str, ...]) -> None:
    """Hints of every shape: none, one word, two words, brackets, braces, bullets, prose, ranges."""
    assert (real[name].arity, real[name].choices) == (arity, choices)


@pytest.mark.parametrize(
    ("name", "negations"),
    [
        ("--kv-offload", ("-nkvo", "--no-kv-offload")),
        ("--kv-unified", ("-no-kvu", "--no-kv-unified")),
        ("--repack", ("-nr", "--no-repack")),
        ("--ui", ("--no-ui", "--no-webui")),
        ("--mmproj-auto", ("--no-mmproj", "--no-mmproj-auto")),
        ("--no-host", ()),
        ("--metrics", ()),
    ],
)
def test_negations(real: dict[str, Flag], name: str, negations: tuple[str, ...]) -> None:
    """Spellings that switch off stand last, short ones included; `--no-host` is a name of its own."""
    assert real[name].negations == negations


def test_marks_and_environment(real: dict[str, Flag]) -> None:
    """Removed and deprecated flags are known as such; defaults and environment names are read."""
    assert real["--draft-max"].removed
    assert "--load-mode" in (real["--mlock"].deprecated or "")
    assert real["--ctx-size"].env == "LLAMA_ARG_CTX_SIZE"
    assert real["--flash-attn"].default == "auto"
    assert real["--tools-runtime"].default == "none, use host environment"
    assert "(env:" not in real["--ctx-size"].help


def test_an_older_build(old: dict[str, Flag]) -> None:
    """Flags of late 2024: flash attention is a switch, `-nkvo` stands alone, two words behind --lora-scaled."""
    assert old["--flash-attn"].arity == 0
    assert old["-nkvo"].names == ("-nkvo", "--no-kv-offload")
    assert old["--lora-scaled"].arity == 2
    assert not old["--draft-max"].removed
    assert "--load-mode" not in old


def test_nothing_in_other_texts() -> None:
    """Text that is no help has no flags."""
    assert parse_help("") == ()
    assert parse_help("error: no such option\n  --indented\n") == ()


_word = st.text("abcxyz", min_size=1, max_size=8)
_long = st.lists(_word, min_size=1, max_size=3).map(lambda w: "--" + "-".join(w)).filter(lambda n: "--no-" not in n)
_entry = st.tuples(
    st.lists(_long, min_size=1, max_size=3, unique=True),
    st.sampled_from(["", "N", "FNAME", "START END", "{none,linear}", "[on|off|auto]", "<0|1>"]),
    st.lists(_word, min_size=1, max_size=30).map(" ".join),
    st.one_of(st.none(), st.just("LLAMA_ARG_X")),
)


def written(names: list[str], hint: str, text: str, env: str | None) -> str:
    """One entry as common_arg::to_string (llama.cpp common/arg.cpp) writes it."""
    head = names[0] if len(names) == 1 else f"{names[0]}, ".ljust(7) + ", ".join(names[1:])
    head += f" {hint}" if hint else ""
    lines = textwrap.wrap(text, 70) + ([f"(env: {env})"] if env else [])
    if len(head) > 37:
        return "\n".join([head, *(" " * 40 + line for line in lines)])
    return "\n".join([head.ljust(40) + lines[0], *(" " * 40 + line for line in lines[1:])])


@settings(max_examples=30)
@given(st.lists(_entry, max_size=8))
def test_whatever_llama_cpp_writes_is_read_back(entries: list[tuple[list[str], str, str, str | None]]) -> None:
    """Names, arity, help and environment survive the layout, for long and short heads."""
    text = "----- common params -----\n\n" + "\n".join(written(*entry) for entry in entries) + "\n"
    flags = parse_help(text)
    arity = {"": 0, "START END": 2}
    expected = [(tuple(n), arity.get(hint, 1), " ".join(text.split()), env) for n, hint, text, env in entries]
    assert [(f.names, f.arity, f.help, f.env) for f in flags] == expected
