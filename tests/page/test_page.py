"""The page in a real headless Chromium, on a real fleet."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.cli.conftest import Cli
from tests.page.browser import Browser, browser
from tests.page.conftest import EVIL
from tests.tinymodels.picture import png

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # `make pages`: it needs a browser


def enter(page: Browser, cli: Cli) -> None:
    """Come in by a link of `launch ui`."""
    page.open(cli.json("ui")["url"])
    page.until("window.launch && launch.status && launch.status.ready && document.querySelectorAll('.card').length > 2")


def go(page: Browser, name: str) -> None:
    """To one of its pages."""
    page.js(f"location.hash = '{name}'")
    page.until(f"document.querySelector('nav a[aria-current]').getAttribute('href') === '#{name}'")


def tab_to(page: Browser, selector: str) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(60):
        page.key("Tab", 9)
        if page.js(f"document.activeElement.matches({json.dumps(selector)})"):
            return
    raise AssertionError(f"Tab never comes to {selector}")


def choose(page: Browser, model: str) -> None:
    """Take a model of the list, as a person would."""
    page.js(f"""{{
      const list = document.querySelector('select');
      list.value = {json.dumps(model)};
      list.dispatchEvent(new Event('change'));
    }}""")


def test_people_can_watch_and_act(paged: Cli) -> None:  # noqa: PLR0915 - one started fleet for all of it
    """Swap, cancel, chat, reload, log: each done on the page, and seen there; nothing goes anywhere else."""
    with browser() as page:
        page.size(1440, 900)
        enter(page, paged)
        assert "enter=" not in page.js("location.href")
        assert page.js("document.cookie") == ""

        # the keyboard alone: over the skip link to a page, and out of a question that is not answered
        page.key("Tab", 9)
        assert page.js("document.activeElement.className") == "skip"
        tab_to(page, "a[href='#devices']")
        page.key("Enter", 13)
        page.until("document.querySelector('main').innerText.includes('Planned now')")
        assert page.js("document.activeElement.id") == "main"
        go(page, "fleet")
        assert "cloud http://127.0.0.1:9/v1" in page.js(
            "document.querySelector('#upstreams').innerText.replace(/\\s+/g, ' ')"
        )
        tab_to(page, "button[aria-label='Stop left']")
        page.key("Enter", 13)
        page.until("Boolean(document.querySelector('#ask[open]'))")
        page.key("Escape", 27)
        page.until("!document.querySelector('#ask[open]')")
        assert page.js("document.activeElement.getAttribute('aria-label')") == "Stop left"
        assert page.js("launch.processes.get('left').state") == "ready"

        # a swap: what must stop is said before, and the page shows both within a second of the event
        page.click("Swap in right")
        assert "left must stop" in page.until("document.querySelector('#ask[open]')?.innerText")
        page.click("Swap in right")
        page.until("launch.processes.get('right').state === 'ready'")
        swap = page.until("launch.events.find(e => e.kind === 'swap')")
        assert (swap["name"], swap["details"]["instead_of"]) == ("right", ["left"])
        page.until("launch.processes.get('left').state === 'stopped'", timeout_s=1)

        # what its binary said before it was started stands beside what is planned and measured
        assert "by its own dry run (b10068)" in page.js("document.querySelector('.cards').innerText")

        # a log, followed
        page.click("Log of chat")
        page.until("document.querySelector('pre')?.textContent.includes('listening on')")

        # a chat: who would answer, and what must stop for it, is said before; what the model says is never markup
        go(page, "try")
        choose(page, "left")
        lead = "document.querySelector('#leads').textContent"
        assert page.js(lead) == "left is stopped: asking it starts it, and right must stop."
        choose(page, "chat")
        page.js("document.querySelector('#prompt').value = 'Hi'")
        page.click("Send")
        page.until(f"document.querySelector('.assistant')?.textContent === {json.dumps(EVIL)}")
        assert page.js("document.querySelectorAll('.talk script, .talk img').length") == 0
        assert "owned" not in page.js("document.title")
        assert page.js("getComputedStyle(document.querySelector('.assistant')).direction") == "rtl"  # as Hebrew is read
        page.until("!document.querySelector('button.main').disabled")
        page.click("Copy as curl")
        assert page.js("document.querySelector('pre').textContent").startswith(f"curl {paged.front}/v1/chat")

        # an image, where the model takes them, and nowhere else
        image = "document.querySelector('input[type=file]')"
        page.click("Begin anew")
        assert not page.js(f"{image}.checkVisibility()")
        choose(page, "left")
        assert page.js(f"{image}.checkVisibility()")
        data = png(56, 56).partition(",")[2]
        page.js(f"""{{
          const bytes = Uint8Array.from(atob('{data}'), c => c.charCodeAt(0));
          const file = new File([bytes], 'ramp.png', {{type: 'image/png'}});
          const chosen = new DataTransfer();
          chosen.items.add(file);
          {image}.files = chosen.files;
          document.querySelector('#prompt').value = 'What is it?';
          document.querySelector('input[type=number]').value = 4;
        }}""")
        page.click("Send")
        page.until(
            "document.querySelector('.assistant')?.textContent && !document.querySelector('button.main').disabled"
        )
        assert page.until("launch.ended.find(r => r.server === 'left')")["status"] == 200
        page.js("document.querySelector('input[type=number]').value = 256")

        # a request that waits for nothing to end: cancel frees its slot
        go(page, "requests")
        page.js("""void fetch('/v1/completions', {method: 'POST', headers: {'content-type': 'application/json'},
          body: JSON.stringify({model: 'right', prompt: 'x', max_tokens: 100000, ignore_eos: true, stream: true})})
          .then(r => r.text()).catch(() => 0)""")
        request = page.until("launch.now.find(r => r.server === 'right' && r.generated_tokens > 2)?.id")
        page.until("launch.processes.get('right').in_flight === 1")
        page.click(f"Cancel request {request}")
        page.until("launch.now.length === 0 && launch.processes.get('right').in_flight === 0")
        assert page.until(f"launch.ended.find(r => r.id === '{request}')")["code"] == "request_cancelled"
        done = page.js("launch.ended.find(r => r.server === 'chat')")
        assert (done["status"], done["state"], done["generated_tokens"] > 5) == (200, "done", True)
        assert "owned" not in json.dumps(page.js("[launch.ended, launch.events]"))

        # a reload says what it would restart, then does that
        file = paged.home / "launch.yaml"
        more = '"slots": 1, "n_ctx": 8448'  # beyond what the model was trained for: that is found
        file.write_text(file.read_text().replace('"slots": 2, "n_ctx": 4096', more))
        go(page, "plan")
        assert "chat would restart" in page.until("document.querySelector('#changes')?.innerText", timeout_s=240)
        page.until("Boolean(document.querySelector('main details'))")
        page.js("document.querySelector('main details').open = true")
        page.until("document.querySelector('main details').innerText.includes('$ launch plan')", timeout_s=60)
        page.click("Reload")
        page.until("Boolean(document.querySelector('#ask[open]'))")
        page.js("document.querySelector('#ask button').click()")
        page.until("document.querySelector('#changes')?.innerText.includes('No process would')", timeout_s=240)
        assert paged.process("chat")["slots"] == 1

        # every page: at a phone's size and a desk's nothing is wider than the window; no script failed
        for width, height in ((390, 844), (1440, 900)):
            page.size(width, height)
            for name in ("fleet", "devices", "timeline", "requests", "plan", "try", "orchestration"):
                go(page, name)
                assert page.js("document.documentElement.scrollWidth") <= width, (name, width)
        page.until("Boolean(document.querySelector('nav a[aria-current]'))")
        cut = "ERR_CONNECTION_RESET"  # what a browser says of the stream that was cancelled
        assert [error for error in page.errors if cut not in error] == []
        assert all(url.startswith((paged.front, "data:", "about:", "blob:")) for url in page.urls), page.urls

        # the link is spent: another browser is not let in by it
        link = paged.json("ui")["url"]
        enter(page, paged)
        token = link.partition("enter=")[2]
        assert httpx.post(f"{paged.front}/ui/enter", json={"token": token}).status_code == 200
        assert httpx.post(f"{paged.front}/ui/enter", json={"token": token}).status_code == 403

        # reload in the middle of a stream: its client is gone, its slot free, and the page is as it was
        go(page, "requests")
        page.js("""void fetch('/v1/completions', {method: 'POST', headers: {'content-type': 'application/json'},
          body: JSON.stringify({model: 'right', prompt: 'x', max_tokens: 100000, ignore_eos: true, stream: true})})
          .then(r => r.text()).catch(() => 0)""")
        page.until("launch.now.length === 1")
        page.js("void location.reload()")
        page.until("window.launch?.status?.ready && location.hash === '#requests' && launch.now.length === 0")
        page.until("launch.processes.get('right').in_flight === 0")

        # another runtime: the page says that it is not admitted, and a link that is opened in its tab lets it in again
        paged.run("stop", "--all")
        page.until("document.querySelector('#state').textContent.includes('reconnecting')")
        assert page.js("document.querySelector('main').className") == "away"
        paged.run("--detach")
        page.until("document.querySelector('#state').textContent === 'not admitted'")
        assert "was admitted before" in page.js("document.querySelector('main').innerText")
        enter(page, paged)
        page.until("launch.events.filter(e => e.kind === 'runtime').length > 2")  # what was before, and what was missed
        cut = (
            "ERR_CONNECTION_RE",
            "ERR_INCOMPLETE",
            "403",
            "503",
            "502",
        )  # what a browser says of a fleet that is away
        assert [error for error in page.errors if not any(known in error for known in cut)] == []
