"""A headless Chromium, driven over its debugging pipe: no port, no driver, no package. I/O."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests run as root in containers
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--remote-debugging-pipe",
)


class Browser:
    """One page of one browser. What its scripts raise, and what it asks of the network, is kept."""

    def __init__(self, profile: Path) -> None:
        """Start it."""
        self._to, mine = os.pipe()
        theirs, self._from = os.pipe()
        self.write, self.read = mine, theirs
        self.errors: list[str] = []
        self.urls: list[str] = []
        argv = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        shell = f'exec "$@" 3<&{self._to} 4>&{self._from}'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", shell, "chromium", *argv],
            pass_fds=(self._to, self._from),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(self._to)
        os.close(self._from)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask, and wait for the answer; meanwhile events are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            said = self._next(30)
            if said.get("id") == self._number:
                if "error" in said:
                    raise RuntimeError(f"{method}: {said['error']}")
                result: dict[str, Any] = said["result"]
                return result

    def _next(self, timeout_s: float) -> dict[str, Any]:
        """The next message."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self.read], [], [], timeout_s)
            data = os.read(self.read, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError("the browser says nothing")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        said: dict[str, Any] = json.loads(line)
        parameters = said.get("params", {})
        if said.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif said.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        elif said.get("method") == "Network.requestWillBeSent":
            self.urls.append(parameters["request"]["url"])
        return said

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """The window, and which of the two colour schemes is liked."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def open(self, url: str) -> None:
        """Go there."""
        self.send("Page.navigate", url=url)

    def js(self, expression: str) -> Any:
        """The value of an expression, awaited."""
        said = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in said:
            raise RuntimeError(said["exceptionDetails"].get("exception", {}).get("description", "?"))
        return said["result"].get("value")

    def until(self, expression: str, timeout_s: float = 20) -> Any:
        """Poll until an expression is true; its value. What the page showed instead is in the error."""
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(RuntimeError):  # the document is just being replaced
                value = self.js(expression)
                if value:
                    return value
            if time.monotonic() > deadline:
                shown = self.js("document.body.innerText")
                raise AssertionError(f"never true: {expression}\n{self.errors}\n{shown}")
            time.sleep(0.05)

    def click(self, label: str) -> None:
        """Click the button with this text or label, as the keyboard would: focus, then Enter."""
        wanted = json.dumps(label)
        found = f"""[...(document.querySelector('dialog[open]') || document).querySelectorAll('button')]
          .find(b => !b.disabled && b.offsetParent !== null
            && [b.textContent, b.getAttribute('aria-label')].includes({wanted}))"""
        self.until(f"Boolean({found})")
        self.js(f"{found}.focus(), {found}.click()")

    def key(self, key: str, code: int) -> None:
        """Press one key."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def picture(self, path: Path) -> None:
        """A screenshot as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """End it, and whatever it started: all of it is gone afterwards, however busy the machine is."""
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            family = psutil.Process(self._process.pid).children(recursive=True)
            os.killpg(self._process.pid, signal.SIGKILL)
            for one in family:
                with contextlib.suppress(psutil.Error):
                    one.kill()
            psutil.wait_procs(family, timeout=30)
        self._process.wait()
        os.close(self.write)
        os.close(self.read)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser within the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        opened = Browser(Path(folder))
        try:
            yield opened
        finally:
            opened.close()
