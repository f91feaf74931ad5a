"""What `launch inspect` costs beyond interpreter and imports, for a vocabulary of 150,000 tokens.

`python -m benchmarks.inspect_vocabulary`: fresh processes, each with everything imported before the clock starts.
"""

from __future__ import annotations

import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

TOKENS, MERGES, LAYERS, WIDTH = 151_936, 151_387, 36, 4096
LIMIT_MS = 50.0
ROUNDS = 11
ONE = """
import contextlib, io, sys, time
from pathlib import Path
from launcher.cli.inspect import inspect_files
small, big = map(Path, sys.argv[1:])
with contextlib.redirect_stdout(io.StringIO()):
    inspect_files([str(small)], [], as_json=True, no_color=True)
    wall, cpu = time.perf_counter(), time.process_time()
    inspect_files([str(big)], [], as_json=True, no_color=True)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
print(wall * 1e3, cpu * 1e3)
"""


def _text(word: str) -> bytes:
    """A string as GGUF writes it."""
    return struct.pack("<Q", len(word)) + word.encode()


def write(path: Path, tokens: int, merges: int) -> None:
    """A qwen3-like header with a vocabulary of real length, and a hole for the weights."""
    numbers = {"block_count": LAYERS, "context_length": 40960, "embedding_length": WIDTH, "feed_forward_length": 12288}
    numbers |= {"attention.head_count": 32, "attention.head_count_kv": 8}
    numbers |= {"attention.key_length": 128, "attention.value_length": 128}
    words = [f"{i * 2654435761 % 2**32:x}{'ab' * (i % 4)}" for i in range(tokens)]
    keys = [("general.architecture", struct.pack("<I", 8) + _text("qwen3"))]
    keys += [(f"qwen3.{name}", struct.pack("<II", 4, value)) for name, value in numbers.items()]
    keys += [
        ("tokenizer.ggml.model", struct.pack("<I", 8) + _text("gpt2")),
        ("tokenizer.ggml.tokens", struct.pack("<IIQ", 9, 8, tokens) + b"".join(map(_text, words))),
        ("tokenizer.ggml.token_type", struct.pack(f"<IIQ{tokens}i", 9, 5, tokens, *[1] * tokens)),
        (
            "tokenizer.ggml.merges",
            struct.pack("<IIQ", 9, 8, merges) + b"".join(_text(f"{w[:4]} {w[4:]}") for w in words[:merges]),
        ),
        ("tokenizer.ggml.bos_token_id", struct.pack("<II", 4, 1)),
    ]
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd", (WIDTH, tokens)),
        ("output", (WIDTH, tokens)),
        ("output_norm", (WIDTH,)),
    ]
    for layer in range(LAYERS):
        inner: dict[str, tuple[int, ...]] = {
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (WIDTH, 1024),
            "attn_v": (WIDTH, 1024),
            "attn_output": (WIDTH, WIDTH),
        }
        inner |= {"ffn_gate": (WIDTH, 12288), "ffn_up": (WIDTH, 12288), "ffn_down": (12288, WIDTH)}
        inner |= {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_q_norm": (128,), "attn_k_norm": (128,)}
        shapes += [(f"blk.{layer}.{name}", shape) for name, shape in inner.items()]
    infos, offset = b"", 0
    for name, shape in shapes:
        size = shape[0] * shape[1] // 32 * 34 if len(shape) == 2 else shape[0] * 4
        infos += _text(f"{name}.weight") + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        infos += struct.pack("<IQ", 8 if len(shape) == 2 else 0, offset)
        offset += -(-size // 32) * 32
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(shapes), len(keys))
    head += b"".join(_text(key) + value for key, value in keys) + infos
    with path.open("wb") as file:
        file.write(head)
        file.truncate(-(-len(head) // 32) * 32 + offset)


def main() -> int:
    """0 where the median of CPU time is within the limit."""
    with tempfile.TemporaryDirectory() as folder:
        small, big = Path(folder, "small.gguf"), Path(folder, "big.gguf")
        write(small, 300, 1)
        write(big, TOKENS, MERGES)
        runs = [
            subprocess.run([sys.executable, "-c", ONE, small, big], check=True, capture_output=True, text=True).stdout
            for _ in range(ROUNDS)
        ]
    wall, cpu = ([float(run.split()[i]) for run in runs] for i in (0, 1))
    print(f"{TOKENS:,} tokens and {MERGES:,} merges, {ROUNDS} processes:")
    print(f"wall {statistics.median(wall):6.1f} ms median, {min(wall):6.1f} best")
    print(f"CPU  {statistics.median(cpu):6.1f} ms median, {min(cpu):6.1f} best; the limit is {LIMIT_MS:g}")
    return 0 if statistics.median(cpu) <= LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
