"""The header reader: what it reads, and every way in which a file can be wrong."""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launcher.catalog.architecture import architecture_from_headers
from launcher.catalog.files import read_header
from launcher.catalog.ggml_types import BY_NAME, TYPES, tensor_bytes
from launcher.catalog.gguf import BadHeader, Header, parse_header

from . import rawgguf as raw


def parse(content: bytes, size: int | None = None) -> Header:
    """The header of bytes in memory."""
    return parse_header(io.BytesIO(content), len(content) if size is None else size)


def refusal(content: bytes, size: int | None = None) -> BadHeader:
    """Why bytes in memory are refused."""
    with pytest.raises(BadHeader) as caught:
        parse(content, size)
    return caught.value


def test_a_small_file_is_read_whole() -> None:
    """Scalars, lengths, shapes and sizes come out as they were written."""
    content = raw.small(extra=[("x.flags", raw.ARRAY, (raw.BOOL, [True, False])), ("x.eps", raw.F32, 0.5)])
    header = parse(content)
    assert header.values["llama.block_count"] == 2
    assert header.values["x.flags"] == (True, False)
    assert header.values["x.eps"] == 0.5
    assert header.lengths["tokenizer.ggml.tokens"] == 3
    assert header.lengths["tokenizer.ggml.merges"] == 1
    assert "tokenizer.ggml.tokens" not in header.values
    assert [(t.name, t.type, t.shape, t.size_bytes) for t in header.tensors] == [
        ("token_embd.weight", "f32", (64, 3), 768),
        ("output_norm.weight", "f32", (64,), 256),
    ]


def test_the_real_model_agrees_with_the_gguf_package(smollm2: Path) -> None:
    """Every tensor's name, type, shape and size, and every kept value, as the gguf package reads them."""
    reader, header = gguf.GGUFReader(smollm2), read_header(str(smollm2))
    assert [(t.name, t.type.upper(), t.shape, t.size_bytes) for t in header.tensors] == [
        (t.name, t.tensor_type.name.upper(), tuple(int(n) for n in t.shape), int(t.n_bytes)) for t in reader.tensors
    ]
    for field in reader.fields.values():
        if field.types[:1] == [gguf.GGUFValueType.ARRAY]:
            assert header.lengths[field.name] == len(field.data)
        elif not field.name.startswith("GGUF."):
            assert header.values[field.name] == field.contents()


def test_types_agree_with_the_gguf_package() -> None:
    """Block sizes equal those of gguf-py, but for q8_1: ggml-common.h has two half floats there, gguf-py two floats."""
    theirs = {int(k): v for k, v in gguf.GGML_QUANT_SIZES.items()}
    ours = {k: (t.block, t.block_bytes) for k, t in TYPES.items() if k in theirs}
    assert theirs.keys() <= TYPES.keys()
    assert {k: v for k, v in ours.items() if v != theirs[k]} == {9: (32, 36)}
    assert tensor_bytes("q4_K", (4096, 3)) == 3 * 16 * 144
    assert tensor_bytes("mxfp4", (64, 2, 2)) == 8 * 17
    assert len(BY_NAME) == len(TYPES)


def test_long_strings_and_long_arrays_are_stepped_over() -> None:
    """Strings of 256 bytes and more among short ones, over several reads, keep the position exact."""
    words = [b"x" * (i % 40) for i in range(30_000)]
    words[5], words[700], words[20_000] = b"y" * 256, b"\0" * 300, b"z" * 400_000
    tokens = struct.pack("<IQ", raw.STRING, len(words)) + b"".join(raw.text(w) for w in words)
    scores = struct.pack("<IQ", raw.F32, 300_000) + bytes(1_200_000)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 3)
    head += raw.text("t") + struct.pack("<I", raw.ARRAY) + tokens
    head += raw.text("s") + struct.pack("<I", raw.ARRAY) + scores
    head += raw.text("end") + struct.pack("<II", raw.U32, 7)
    header = parse(head)
    assert header.lengths == {"t": 30_000, "s": 300_000}
    assert header.values == {"end": 7}
    assert header.digest == hashlib.sha256(head).hexdigest()


def test_the_digest_is_of_the_header_alone() -> None:
    """Other weights give the same digest; another key gives another."""
    content = raw.small()
    other_weights = content[:-1] + b"\1"
    assert parse(content).digest == parse(other_weights).digest
    assert parse(content).digest != parse(raw.small(replace={"llama.context_length": 1024})).digest


@pytest.mark.parametrize("missing", [1, 255, 256, 1000])
def test_data_that_is_cut_is_named_to_the_byte(missing: int) -> None:
    """A file that lacks even one byte of its last tensor is truncated, and says by how much."""
    content = raw.small()
    bad = refusal(content[:-missing])
    assert bad.code == "catalog/truncated"
    assert f"{missing:,} are missing" in bad.message
    assert ("output_norm.weight" if missing <= 256 else "token_embd.weight") in bad.message
    assert "download" in bad.notes[0]


def test_padding_after_the_last_tensor_may_be_absent() -> None:
    """llama.cpp does not ask for it either."""
    head = raw.header(raw.LLAMA_KEYS, [("a", (3,), 0, 0)])
    assert parse(raw.with_data(head, 12)).tensors[0].size_bytes == 12


def test_every_cut_of_a_header_is_truncated() -> None:
    """Wherever a header ends, it is `catalog/truncated`."""
    content = raw.small()
    for size in range(len(content) - raw.LLAMA_DATA):
        assert refusal(content[:size]).code == "catalog/truncated"


@pytest.mark.parametrize(
    ("content", "code", "part"),
    [
        (b"", "catalog/truncated", "empty"),
        (b"\x7fELF" + bytes(99), "catalog/not-gguf", "\\x7fELF"),
        (b"lmgg" + bytes(99), "catalog/not-gguf", "lmgg"),
        (b"x", "catalog/not-gguf", "'x'"),
        (raw.header([], version=1), "catalog/unsupported-version", "version 1"),
        (raw.header([], version=4), "catalog/unsupported-version", "version 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "catalog/unsupported-version", "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "catalog/corrupt-header", "keys"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0), "catalog/corrupt-header", "tensors"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62), "catalog/corrupt-header", "claims"),
        (raw.header([("k", 13, 0)][:0]) + b"", None, ""),
    ],
)
def test_preambles(content: bytes, code: str | None, part: str) -> None:
    """Magic, version, byte order and counts are judged before anything is read."""
    if code is None:
        assert parse(content).tensors == ()
        return
    bad = refusal(content)
    assert bad.code == code
    assert part in bad.message


def _one_key(kind: int, body: bytes) -> bytes:
    """A header with one key of raw content."""
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + raw.text("k") + struct.pack("<I", kind) + body


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (_one_key(13, bytes(8)), "value type 13"),
        (_one_key(raw.ARRAY, struct.pack("<IQ", raw.ARRAY, 1)), "value type 9"),
        (_one_key(raw.ARRAY, struct.pack("<IQ", raw.STRING, 2**60)), "claims"),
        (_one_key(raw.ARRAY, struct.pack("<IQ", raw.F32, 2**61)), "claims"),
        (_one_key(raw.STRING, raw.text(b"\xff\xfe")), "not UTF-8"),
        (
            _one_key(raw.ARRAY, struct.pack("<IQ", raw.STRING, 2) + struct.pack("<Q", 2**63) + bytes(64)),
            "longer than any",
        ),
        (raw.header([("k", raw.U32, 1), ("k", raw.U32, 2)]), "occurs twice"),
        (raw.header([("general.alignment", raw.U32, 0)]), "alignment is 0"),
        (raw.header([("general.alignment", raw.U32, 48)]), "alignment is 48"),
        (raw.header([("general.alignment", raw.STRING, "32")]), "alignment is '32'"),
        (raw.header([], [("a", (32,), 99, 0)]), "type 99, unknown"),
        (raw.header([], [("a", (32,), 31, 0)]), "q4_0_4_4"),
        (raw.header([], [("a", (33,), 8, 0)]), "no multiple of 32"),
        (raw.header([], [("a", (2**32, 2**31), 0, 0)]), "more weights"),
        (raw.header([], [("a", (1, 1, 1, 1, 1), 0, 0)]), "5 dimensions"),
        (raw.header([], [("a" * 64, (1,), 0, 0)]), "64 bytes"),
        (raw.with_data(raw.header([], [("a", (8,), 0, 0), ("a", (8,), 0, 32)]), 64), "occurs twice"),
        (raw.with_data(raw.header([], [("a", (8,), 0, 0), ("b", (8,), 0, 64)]), 96), "offset 64; 32 was expected"),
        (raw.with_data(raw.header([], [("a", (8,), 0, 4)]), 96), "offset 4; 0 was expected"),
    ],
)
def test_corrupt_headers(content: bytes, part: str) -> None:
    """What contradicts the format is `catalog/corrupt-header`, and says what."""
    bad = refusal(content + bytes(64))
    assert bad.code == "catalog/corrupt-header"
    assert part in bad.message


def test_a_file_that_shrinks_while_it_is_read_is_truncated() -> None:
    """The size was taken before; the stream ends earlier."""
    content = raw.small()
    bad = refusal(content[:100], size=len(content))
    assert bad.code == "catalog/truncated"
    assert "shrank" in bad.message


def _judged(content: bytes) -> None:
    """Bytes give a header and an architecture, or BadHeader; nothing else."""
    with contextlib.suppress(BadHeader):
        architecture_from_headers((parse(content),))


_SMALL = raw.small(extra=[("llama.attention.sliding_window_pattern", raw.ARRAY, (raw.BOOL, [True, False]))])


_CHANGE = st.tuples(st.integers(0, len(_SMALL) - raw.LLAMA_DATA), st.integers(0, 255))


@settings(max_examples=400, deadline=None)
@given(st.lists(_CHANGE, min_size=1, max_size=4), st.data())
def test_mutated_headers_are_judged(changes: list[tuple[int, int]], data: st.DataObject) -> None:
    """Any bytes changed, and the file cut anywhere: an answer, never another exception."""
    content = bytearray(_SMALL)
    for at, byte in changes:
        content[at] = byte
    _judged(bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(_SMALL) - 8), st.sampled_from([0, 1, 255, 256, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64 - 1]))
def test_absurd_counts_are_judged(at: int, number: int) -> None:
    """A huge length anywhere costs neither memory nor time."""
    content = bytearray(_SMALL)
    content[at : at + 8] = struct.pack("<Q", number)
    _judged(bytes(content))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_noise_is_judged(noise: bytes) -> None:
    """Random bytes after the magic."""
    _judged(b"GGUF" + struct.pack("<I", 3) + noise)
    _judged(noise)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 400), max_size=1200), st.integers(0, 2**32 - 1))
@example([304, 0, 0, 0, 0, 0], 512325178)  # zero bytes in a text make up for those that a length lacks
def test_string_arrays_of_any_lengths(lengths: list[int], end: int) -> None:
    """The walk over a string array ends where the array ends, whatever the strings hold."""
    noise = np.random.default_rng(end).integers(0, 3, 500, np.uint8).tobytes()
    words = [noise[:n] for n in lengths]
    body = struct.pack("<IQ", raw.STRING, len(words)) + b"".join(raw.text(w) for w in words)
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + raw.text("t") + struct.pack("<I", raw.ARRAY) + body
    header = parse(head + raw.text("end") + struct.pack("<II", raw.U32, end))
    assert header.lengths["t"] == len(words)
    assert header.values["end"] == end


_TRAPS = (b"tokenizer.", b"\x0e" + bytes(7) + b"tokenizer.trap", bytes(9), b"x" * 300, b"", b"plain")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(_TRAPS), max_size=40), st.lists(st.sampled_from(_TRAPS), max_size=40))
@example([b"plain"] * 30, [])
def test_landing_at_the_next_key_takes_no_text_for_one(tokens: list[bytes], merges: list[bytes]) -> None:
    """Texts that look like the key after them, with zero bytes and long ones to make up the count."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 4)
    for name, words in (("tokenizer.ggml.tokens", tokens), ("tokenizer.ggml.merges", merges)):
        body = struct.pack("<IIQ", raw.ARRAY, raw.STRING, len(words)) + b"".join(map(raw.text, words))
        head += raw.text(name) + body
    for name in ("tokenizer.ggml.bos_token_id", "end"):
        head += raw.text(name) + struct.pack("<II", raw.U32, 7)
    header = parse(head)
    assert header.lengths == {"tokenizer.ggml.tokens": len(tokens), "tokenizer.ggml.merges": len(merges)}
    assert header.values == {"tokenizer.ggml.bos_token_id": 7, "end": 7}
