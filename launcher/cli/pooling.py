"""`launch preload`, `pin`, `unpin` and `evict`: the warm pool by hand. I/O: asks the runtimes."""

from __future__ import annotations

from launcher.cli.running import fleets
from launcher.cli.terminal import terminals
from launcher.errors import ConfigError, SuperviseError
from launcher.supervise.control import ControlClient, NoRuntimeError
from launcher.supervise.ending import no_answer_finding

_DONE = {
    "preload": "its files are fetched into RAM",
    "pin": "its files stay in RAM",
    "unpin": "its files may leave RAM when others are likelier",
    "evict": "its files may leave RAM now",
}


def act_on_pool(verb: str, model: str, fleet: str | None, *, as_json: bool, no_color: bool) -> int:
    """Do it in the fleet that has `model`, `fleet` where several run.

    Raises ConfigError for a name that no fleet's pool has, SuperviseError where nothing runs or the pool refuses.
    """
    out, _ = terminals(no_color=no_color)
    running = {d: s for d, s in fleets().items() if s.runtime_pid and fleet in (None, s.deployment)}
    if not running:
        what = "no fleet runs here" if fleet is None else f"no fleet {fleet!r} runs here"
        notes = ("`launch up` starts one",)
        raise SuperviseError.of("supervise/nothing-runs", what, *notes)
    unknown = ""
    for directory, status in running.items():
        try:
            with ControlClient(directory) as control:
                control.pool(verb, model)
        except KeyError as error:
            unknown = str(error.args[0])
            continue
        except NoRuntimeError:
            raise SuperviseError([no_answer_finding(directory)]) from None
        if as_json:
            out.json({"schema": "launch.pool/v1", "fleet": status.deployment, "done": verb, "name": model})
        else:
            out.line(f"{model}: {_DONE[verb]}")
        return 0
    raise ConfigError.of("supervise/unknown-name", unknown, key=f"servers.{model}")
