"""The page in a real Chromium over a fleet that is made up: cards, fifty servers, hostile names, logs and events."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import multiprocessing
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.page import SERVERS, Host, process, serve
from launcher.ir.events import Happened
from launcher.runtime.page.stream import LOOK_S
from tests.page.browser import Browser, browser
from tests.page.pages import PAGES
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # `make pages`: it needs a browser
LONG = "a-name-of-somebody-who-writes-everything-that-there-is-to-know-of-a-model-into-its-name-" * 2
EVIL = "<img src=x onerror=\"document.title='owned'\">[a](javascript:document.title='owned')<svg onload=alert(1)>"
BURST = 10_000
GIB = 1024**3


class Odd(Host):
    """Two cards, one of which tells little; names that are long or markup; a log that nobody should write."""

    def __init__(self, log: Path) -> None:
        """At rest."""
        super().__init__()
        first = process(0, name=LONG, model=LONG, state="failed", error=EVIL, log_file=str(log))
        self.processes = {LONG: first, **{name: p for name, p in self.processes.items() if name != "server_00"}}
        self.past = [msgspec.structs.replace(r, client="=cmd|calc", asked=EVIL) for r in self.past]
        self.now = []

    def fleet(self) -> dict[str, Any]:
        """With cards."""
        sizes = {"capacity_bytes": 24 * GIB, "budget_bytes": 22 * GIB, "worst_bytes": GIB}
        cards = [{"name": f"cuda{n}", "kind": "gpu", "nodes": [], **sizes} for n in range(2)]
        said = super().fleet()
        return {**said, "deployment": LONG, "devices": [*said["devices"], *cards], "names": [*said["names"], EVIL]}

    async def loads(self) -> dict[str, Any]:
        """What NVML tells of two cards."""
        card = {"used_bytes": 5 * GIB, "total_bytes": 24 * GIB}
        whole = {"name": "cuda0", "model": "Card", "busy_percent": 73.0, "celsius": 61, "watts": 243.7, **card}
        little = {"name": "cuda1", "model": "Other", "busy_percent": None, "celsius": None, "watts": None, **card}
        return {"gpus": [whole, little], "ram": {"free_bytes": 9 * GIB}, "nodes": []}


async def burst(host: Host, busy: Event) -> None:
    """Once `busy` is set: ten thousand events at once, then one server changes at every look."""
    await asyncio.to_thread(busy.wait)
    for number in range(BURST):
        host.log.add(
            Happened(kind="slots", name=LONG, message=f"{EVIL} {number} \x1b[2J", cause="\u05e9\u05dc\u05d5\u05dd")
        )
    number = 0
    while True:
        await asyncio.sleep(LOOK_S)
        number += 1
        host.processes["server_01"] = process(1, in_flight=number % 4)


def serve_odd(port: int, busy: Event, log: Path) -> None:
    """The child."""
    serve(port, busy, lambda: Odd(log), burst)


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[tuple[str, Event]]:
    """The page's address, and what begins the burst."""
    log = tmp_path / "log"
    log.write_text(f"\x1b[31mred\x1b[0m \x1b]0;owned\x07{EVIL}\n" + "x" * 2_000_000 + "\nend\n")
    busy, port = multiprocessing.Event(), free_port()
    child = multiprocessing.Process(target=serve_odd, args=(port, busy, log), daemon=True)
    child.start()
    yield f"http://127.0.0.1:{port}/ui/", busy
    child.kill()
    child.join()


def go(page: Browser, name: str) -> None:
    """To one of its pages."""
    page.js(f"location.hash = '{name}'")
    page.until(f"document.querySelector('nav a[aria-current]').getAttribute('href') === '#{name}'")


def test_a_fleet_that_nobody_would_draw(odd: tuple[str, Event]) -> None:  # noqa: PLR0915 - one browser for all of it
    """What cards tell is shown; nothing is wider than its window, markup, obeyed, or kept for ever; focus stays."""
    url, busy = odd
    with browser() as page:
        page.size(1440, 900)
        page.open(url)
        page.until("window.launch?.fleet && launch.ended.length === 1000", timeout_s=60)
        page.js("localStorage.setItem('launch', '{\"hash\": 1'); sessionStorage.setItem('launch', '<img>')")
        page.js("void location.reload()")
        page.until(f"document.querySelectorAll('.card').length === {SERVERS}", timeout_s=60)

        # GPU utilisation, temperature and power, where they are told
        go(page, "devices")
        told = ("Card: 5.0 GiB used, 73 % busy, 61 °C, 244 W", "Other: 5.0 GiB used\n")
        shown = (*told, f"and {SERVERS - 12 - 1} more")  # of those that are up
        page.until(f"{json.dumps(shown)}.every((text) => document.querySelector('main').innerText.includes(text))")

        # a phone, twice the size on a desk, the narrowest that WCAG asks for: nothing is wider than the window
        for width, height in ((390, 844), (720, 450), (320, 256)):
            page.size(width, height, dark=width == 390)
            for name in PAGES:
                if name != "plan":  # which this host cannot compile
                    go(page, name)
                    assert page.js("document.documentElement.scrollWidth") <= width, (name, width)
        page.size(1440, 900)
        features = [{"name": "prefers-reduced-motion", "value": "reduce"}]
        page.send("Emulation.setEmulatedMedia", features=features)
        assert page.js("getComputedStyle(document.documentElement).scrollBehavior") == "auto"

        # a filter; a log as text, without what a terminal obeys, and never all of a line that has no end
        go(page, "fleet")
        page.js("""{ const field = document.querySelector('input[type=search]');
          field.value = 'failed'; field.dispatchEvent(new Event('input')); }""")
        page.until("document.querySelectorAll('.card').length === 1")
        page.click(f"Log of {LONG}")
        text = "document.querySelector('pre')?.textContent"
        log = page.until(f"{text}?.endsWith('end\\n') && {text}")
        assert "\x1b" not in log
        assert len(log) <= 200_000
        page.key("Escape", 27)
        page.until("document.querySelector('section.log').hidden")
        assert page.js("document.activeElement.getAttribute('aria-label')") == f"Log of {LONG}"

        # an export is no formula, and has all that is filtered for
        go(page, "requests")
        page.js("URL.createObjectURL = (blob) => { window.saved = blob; return '#requests'; }")
        page.click("Export as CSV")
        rows = list(csv.reader(io.StringIO(page.js("saved.text()"), newline="")))
        assert (len(rows), rows[0][0], rows[1][2], rows[1][4]) == (1001, "id", "'=cmd|calc", EVIL)

        # ten thousand events at once: the newest are there, the list is bounded
        go(page, "timeline")
        busy.set()
        page.until(f"launch.events.at(-1)?.message.includes(' {BURST - 1} ')", timeout_s=60)
        page.until("document.querySelectorAll('ol.events li').length === 500")
        assert page.js("launch.events.length") <= 5000

        # what is asked about is drawn anew meanwhile: the focus comes back to it
        go(page, "fleet")
        page.js("document.querySelector(\"button[aria-label='Stop server_01']\").focus()")
        page.js("window.before = document.activeElement, before.click()")
        page.until("Boolean(document.querySelector('#ask[open]'))")
        page.until("!before.isConnected")
        page.key("Escape", 27)
        page.until("!document.querySelector('#ask[open]')")
        page.until("document.activeElement.getAttribute('aria-label') === 'Stop server_01'")

        for name in PAGES:
            go(page, name)
            assert page.js("document.querySelectorAll('main img, main a, main script, main svg[onload]').length") == 0
        assert "owned" not in page.js("document.title").replace(LONG, "")
        known = ("500", "404", "net::")  # what this host does not answer
        assert [error for error in page.errors if not any(one in error for one in known)] == []
        assert json.loads(page.js("JSON.stringify(Object.keys(localStorage))")) == ["launch"]
