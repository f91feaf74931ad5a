"""Where the runtime keeps what must outlive it: one private directory a deployment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from launcher.base.names import DEPLOYMENT
from launcher.errors import HostError
from launcher.files.refusal import cannot_read, writing


def state_root(configured: str | None = None, env: Mapping[str, str] | None = None) -> Path:
    """The directory above all deployments' state; not created here.

    First of: `LAUNCH_STATE_DIR`, `configured` (`supervisor.state_dir` of the manifest), systemd's `STATE_DIRECTORY`,
    `$XDG_STATE_HOME/launch`, `~/.local/state/launch`. A relative `XDG_STATE_HOME` is ignored, as its standard asks.
    """
    env = os.environ if env is None else env
    if env.get("LAUNCH_STATE_DIR"):
        return Path(env["LAUNCH_STATE_DIR"]).absolute()
    if configured:
        return Path(configured).expanduser().absolute()
    if env.get("STATE_DIRECTORY"):
        return Path(env["STATE_DIRECTORY"].split(":")[0])
    xdg = env.get("XDG_STATE_HOME", "")
    if Path(xdg).is_absolute():
        return Path(xdg) / "launch"
    return Path("~/.local/state/launch").expanduser()


def deployment_state_dir(deployment: str, configured: str | None = None, *, create: bool = False) -> Path:
    """State directory of `deployment` under `state_root(configured)`; mode 0700, made when `create`.

    Raises ValueError when `deployment` cannot be a directory name, HostError when it cannot be made.
    """
    if not DEPLOYMENT.fullmatch(deployment):
        raise ValueError(f"not a deployment name: {deployment!r}")
    directory = state_root(configured) / deployment
    if create:
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            directory.chmod(0o700)
            for part in ("servers", "logs"):
                (directory / part).mkdir(exist_ok=True, mode=0o700)
    return directory


def known_deployments(configured: str | None = None) -> tuple[str, ...]:
    """Names of the deployments that have a state directory, sorted; also of one that cannot be looked into.

    Raises HostError where the directory above them cannot be read.
    """
    root = state_root(configured)
    try:
        names = [entry.name for entry in os.scandir(root) if DEPLOYMENT.fullmatch(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        note = "whether anything runs is not known"
        raise HostError([cannot_read(root, error.strerror or str(error), note)]) from None
    return tuple(sorted(name for name in names if _has_state(root / name)))


def _has_state(directory: Path) -> bool:
    """Whether a runtime kept state there; it may have where we are not let in."""
    try:
        return (directory / "servers").is_dir()
    except OSError:
        return True
