"""Completion of overrides and of running servers' names. A failure completes nothing: it must never print."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import LaunchError


def complete_overrides(args: list[str], incomplete: str) -> list[str]:
    """Groups, their options, and the keys that people override most."""
    from launcher import config
    from launcher.cli.arguments import complete_override
    from launcher.files import packaged_dir

    dirs = [*_config_dirs(args), packaged_dir("conf")]
    try:
        options = {group: list(names) for group, names in config.groups(dirs).items()}
    except (LaunchError, OSError):
        return []
    options.setdefault("hardware", []).append("auto")
    keys = [
        *(f"servers.{name}.{field}" for name in options.get("server", ()) for field in ("slots", "quantization")),
        "include_warm",
        "runtime.front.port",
    ]
    return complete_override(args, incomplete, options, keys)


def complete_deployed(args: list[str], incomplete: str) -> list[str]:
    """Names of servers and services of running fleets."""
    from launcher.cli.running import running_names

    try:
        return sorted(n for n in running_names() if n.startswith(incomplete) and n not in args)
    except (LaunchError, OSError):
        return []


def _config_dirs(args: list[str]) -> list[Path]:
    """The `--config-dir` values typed so far."""
    return [Path(args[i + 1]) for i, word in enumerate(args[:-1]) if word == "--config-dir"]
