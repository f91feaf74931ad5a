"""What servers can do beside a model, by their dry runs: `python -m benchmarks.memory.abilities [--write]`.

`--binary NAME=PATH` (again for more builds; absent: the embedded one), `--count` servers an ability and build.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from launcher.engine import EMBEDDED, resolve_binary
from launcher.hardware import take_inventory
from launcher.ir.catalog import Catalog
from launcher.ir.config import DraftConfig, EngineConfig, ServerConfig
from launcher.ir.proof import Difference
from launcher.plan.proof import is_mismatch
from launcher.proving import prove_fleet
from launcher.sizes import MIB
from tests.plan import drawn, fleets
from tests.plan.asking import number
from tests.proving.odd import CARDS, file_of

PAGE = Path(__file__).parents[2] / "docs/memory.md"
BEGIN, END = "<!-- benchmarks.memory.abilities -->\n", "<!-- /benchmarks.memory.abilities -->\n"
CARD: dict[str, Any] = {"devices": ("cuda0",), "n_gpu_layers": "all"}
BOTH: dict[str, Any] = {**CARD, "devices": ("cuda0", "cuda1")}
MTP = DraftConfig(kind="mtp", n_max=2)
EXPERTS = tuple(name for name in drawn.EXPERTS if name != "gpt-oss")
CHATS = tuple(name for name in drawn.ARCHITECTURES if name not in drawn.EMBEDS_ONLY)
ABILITIES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "layers for further tokens, unused": (tuple(sorted(drawn.FURTHER)), {"further": True}),
    "`draft: {kind: mtp}`": (tuple(sorted(drawn.FURTHER)), {"further": True, "draft": MTP}),
    "a draft model": (CHATS, {"draft": "small"}),
    "a draft model on another card": (CHATS, {**CARD, "draft": ("cuda1",)}),
    "an indexer": (drawn.LATENT[1:], {}),
    "one K/V cache for all slots": (CHATS, {"slots": 4, "kv_unified": True}),
    "`kv_offload: false`": (CHATS, {**CARD, "kv_offload": False}),
    "`split_mode: none`, `main_gpu`": (CHATS, {**BOTH, "split_mode": "none", "main_gpu": "cuda1"}),
    "`tensor_split`": (CHATS, {**BOTH, "tensor_split": (3.0, 1.0)}),
    "`n_cpu_moe`": (EXPERTS, {**CARD, "n_cpu_moe": 2}),
    "rules about feed-forwards": (CHATS, {**CARD, "tensor_placement": ("ffn_(up|gate|down)=cpu",)}),
    "experts on a second card": (EXPERTS, {**BOTH, "tensor_split": (1.0, 0.0), "tensor_placement": ("exps=cuda1",)}),
}
"""Architectures, which take turns, and the server's fields. `further`: with such a layer; `draft`: or a small model's
place."""


class Row(NamedTuple):
    """One ability of one build. MiB by which what is exact is off, and shares by which bounds are over."""

    servers: int
    off: float
    weights: float
    compute: tuple[float, ...]
    wrong: tuple[str, ...]


def drawn_server(seed: int, name: str, fields: dict[str, Any]) -> tuple[ServerConfig, list[Any]]:
    """A server with the ability, drawn else, and the files that it needs."""
    rng = random.Random(seed)
    arch = drawn.architecture(rng, name)
    own = dict(fields)
    if own.pop("further", False) and not arch.n_layer_nextn:
        arch = msgspec.structs.replace(arch, n_layer=arch.n_layer + 1, n_layer_nextn=1)
    files = [file_of(arch, f"m{seed}")]
    if own.get("draft") is not None and not isinstance(own["draft"], DraftConfig):
        small = msgspec.structs.replace(drawn.architecture(rng, "llama"), n_vocab=arch.n_vocab)
        files.append(file_of(small, f"d{seed}"))
        devices = own["draft"] if isinstance(own["draft"], tuple) else None
        own["draft"] = DraftConfig(model=f"d{seed}", quantization="q8_0", devices=devices)
    plain = msgspec.structs.replace(drawn.config(rng, arch), embedding=False if arch.causal else None)
    return msgspec.structs.replace(plain, **own, model=f"m{seed}"), files


def measured(ability: str, binary: Path, count: int) -> Row:
    """One ability held against one build."""
    names, fields = ABILITIES[ability]
    servers, files = {}, []
    for seed in range(count):
        servers[f"s{seed}"], more = drawn_server(seed, names[seed % len(names)], fields)
        files += more
    build = number(binary)
    engines = {"default": EngineConfig(binary=str(binary), dialect=f"b{build}")}
    fleet = fleets.fleet(servers, hardware=fleets.hardware(gpus=CARDS), engines=engines)
    models = Catalog(files={f"{file.model}@{file.quantization}": file for file in files})
    proof, _ = prove_fleet(fleet, models, binary=str(binary))
    wrong = [f"{s.name} {s.failure}" for s in proof.servers if s.failure]
    rows = [(s.name, d) for s in proof.servers for d in s.differences]
    wrong += [f"{name} {d.component} on {d.device}" for name, d in rows if is_mismatch(d)]
    exact = [_off(d) for _, d in rows if d.component in {"kv", "recurrent", "output"}]
    weights = [_off(d) for _, d in rows if d.component == "model"]
    bounds = [d for _, d in rows if d.component in {"compute", "draft"} and d.proven_bytes]
    over = tuple(sorted(d.predicted_bytes / d.proven_bytes - 1 for d in bounds))
    return Row(len(proof.servers), max(exact, default=0.0), max(weights, default=0.0), over, tuple(wrong))


def _off(d: Difference) -> float:
    """MiB between plan and server."""
    return abs(d.predicted_bytes - d.proven_bytes) / MIB


def table(builds: dict[str, Path], count: int, say: Callable[[str], None]) -> Iterator[str]:
    """Markdown, one row an ability and build; what disagrees is said."""
    yield "| ability | build | servers | K/V, states, output off | weights off | bounds over: least | median |"
    yield "|---|---|---|---|---|---|---|"
    for ability in ABILITIES:
        for name, binary in builds.items():
            row = measured(ability, binary, count)
            for wrong in row.wrong:
                say(f"{ability}, {name}: {wrong}")
            least, middle = min(row.compute, default=0.0), statistics.median(row.compute or (0.0,))
            figures = f"{row.servers} | {row.off:.2f} MiB | {row.weights:.2f} MiB | {least:+.1%} | {middle:+.1%}"
            yield f"| {ability} | {name} | {figures} |"


def main() -> int:
    """0 where plan and builds agree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory.abilities", description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="servers an ability and build")
    parser.add_argument("--binary", action="append", help="NAME=PATH of a llama-server; absent: the embedded one")
    parser.add_argument("--write", action="store_true", help="put the table into docs/memory.md")
    args = parser.parse_args()
    given = args.binary or [f"embedded={resolve_binary(EngineConfig(binary=EMBEDDED, dialect=''))}"]
    builds = {name: Path(path) for name, _, path in (b.partition("=") for b in given)}
    wrong: list[str] = []
    lines = list(table(builds, args.count, wrong.append))
    named = "".join(f" --binary {name}=…" for name in builds)
    head = f"`python -m benchmarks.memory.abilities --count {args.count}{named} --write`, {take_inventory().cpu_model}."
    text = "\n".join([head, "", *(f"- DISAGREES: {w}" for w in wrong), *([""] if wrong else []), *lines, ""])
    sys.stdout.write(text)
    if args.write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(f"{page.split(BEGIN)[0]}{BEGIN}\n{text}\n{END}{page.split(END)[1]}", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
