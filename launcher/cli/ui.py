"""`launch ui`: the way to the fleet's page, for whoever may ask the runtime over its private socket. I/O."""

from __future__ import annotations

import os
import webbrowser

from launcher.cli.running import all_fleets
from launcher.cli.terminal import terminals
from launcher.errors import ConfigError, SuperviseError
from launcher.ir.page import UiDocument
from launcher.supervise.control import ControlClient, NoRuntimeError
from launcher.supervise.ending import no_answer_finding


def show_page(name: str | None, *, print_only: bool, as_json: bool, no_color: bool) -> int:
    """Print the link, and open it where there is a screen. `name`: of several fleets, this one.

    Raises ConfigError where it is not clear whose page is meant, SuperviseError where no runtime serves one.
    """
    out, _ = terminals(no_color=no_color)
    served = {d: s for d, s in all_fleets().items() if s.runtime_pid and s.front and name in (None, s.deployment)}
    if not served:
        what = "no fleet runs here whose front serves a page" if name is None else f"no fleet {name!r} runs here"
        notes = ("`launch up` starts one",)
        raise SuperviseError.of("supervise/nothing-runs", what, *notes)
    if len(served) > 1:
        names = ", ".join(sorted(status.deployment for status in served.values()))
        message, note = f"several fleets run: {names}", "launch ui FLEET"
        raise ConfigError.of("config/usage", message, note)
    [(directory, status)] = served.items()
    try:
        with ControlClient(directory) as control:
            word = control.page_link()
    except NoRuntimeError:
        raise SuperviseError([no_answer_finding(directory)]) from None
    link = f"{status.front}/ui/#enter={word}"
    if as_json:
        out.json(UiDocument(url=link))
        return 0
    out.line(link)
    if not print_only and out.interactive and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(link)
    return 0
