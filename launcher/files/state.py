"""Where the runtime keeps what must outlive it: one private directory a deployment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from launcher.files.refusal import writing

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@=-]*")


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
    if not _NAME.fullmatch(deployment):
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
    """Names of the deployments that have a state directory, sorted."""
    root = state_root(configured)
    if not root.is_dir():
        return ()
    return tuple(sorted(p.name for p in root.iterdir() if (p / "servers").is_dir()))
