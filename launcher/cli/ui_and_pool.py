"""Commands that ask one running runtime: `ui`, and the warm pool by hand (`preload`, `pin`, `unpin`, `evict`). I/O."""

from __future__ import annotations

import os
import webbrowser

from launcher.cli.running import all_fleets, asked, fleets
from launcher.cli.terminal import terminals
from launcher.errors import ConfigError, SuperviseError
from launcher.ir.page import UiDocument

_DONE = {
    "preload": "its files are fetched into RAM",
    "pin": "its files stay in RAM",
    "unpin": "its files may leave RAM when others are likelier",
    "evict": "its files may leave RAM now",
}


def show_page(name: str | None, *, print_only: bool, as_json: bool) -> int:
    """Print the link to the fleet's page, and open it if there is a screen. `name`: of several fleets, this one.

    Raises ConfigError if it is not clear whose page is meant, SuperviseError if no runtime serves one.
    """
    out, _ = terminals()
    served = {d: s for d, s in all_fleets().items() if s.runtime_pid and s.front and name in (None, s.deployment)}
    if not served:
        raise _nothing_runs(name, " whose front serves a page")
    if len(served) > 1:
        names = ", ".join(sorted(status.deployment for status in served.values()))
        raise ConfigError.of("config/usage", f"several fleets run: {names}", "launch ui FLEET")
    [(directory, status)] = served.items()
    with asked(directory) as control:
        link = f"{status.front}/ui/#enter={control.page_link()}"
    if as_json:
        out.json(UiDocument(url=link))
        return 0
    out.line(link)
    if not print_only and out.interactive and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(link)
    return 0


def act_on_pool(verb: str, model: str, fleet: str | None, *, as_json: bool) -> int:
    """Do `verb` with `model` in the fleet that has it; `fleet`: only in this one.

    Raises ConfigError for a name that no fleet's pool has, SuperviseError if nothing runs or the pool refuses.
    """
    out, _ = terminals()
    running = {d: s for d, s in fleets().items() if s.runtime_pid and fleet in (None, s.deployment)}
    if not running:
        raise _nothing_runs(fleet)
    unknown = ""
    for directory, status in running.items():
        try:
            with asked(directory) as control:
                control.pool(verb, model)
        except ConfigError as error:
            unknown = error.findings[0].message
            continue
        if as_json:
            out.json({"schema": "launch.pool/v1", "fleet": status.deployment, "done": verb, "name": model})
        else:
            out.line(f"{model}: {_DONE[verb]}")
        return 0
    raise ConfigError.of("supervise/unknown-name", unknown, key=f"servers.{model}")


def _nothing_runs(fleet: str | None, which: str = "") -> SuperviseError:
    what = f"no fleet runs here{which}" if fleet is None else f"no fleet {fleet!r} runs here"
    return SuperviseError.of("supervise/nothing-runs", what, "`launch up` starts one")
