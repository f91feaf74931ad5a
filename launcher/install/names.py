"""Which paths and units a deployment may have: its own, whatever a bundle or a record says. Pure but for one look."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from launcher.base.names import PROCESS, TAKEN_PREFIXES
from launcher.errors import ConfigError, Finding, error_finding
from launcher.install.layout import Layout
from launcher.ir.deployment import Deployment
from launcher.ir.fleet import FleetManifest
from launcher.manifest import decode_fleet

_OURS = re.compile(r"(?P<prefix>[A-Za-z0-9_][A-Za-z0-9._+=]*)-[A-Za-z0-9_][A-Za-z0-9_.+@=-]*")
_RUNG = re.compile(r"\.rung\d+\Z")
_VENDORS = {
    "system": (
        "/usr/lib/systemd/system",
        "/lib/systemd/system",
        "/usr/local/lib/systemd/system",
        "/run/systemd/system",
    ),
    "user": ("/usr/lib/systemd/user", "/usr/local/lib/systemd/user"),
}
"""Where others put units that one of the same name in /etc would replace."""


def not_ours(path: Path, layout: Layout, deployment: str) -> str | None:
    """Why `path`, as the installed machine names it, is no file of `deployment`; None when it is one."""
    folder, name = layout.root / path.parent.relative_to("/"), path.name
    stem, suffix = path.stem, path.suffix
    if folder == layout.data(deployment):
        return None if PROCESS.fullmatch(name) else "it is no name of a file of ours"
    kinds = {
        layout.units: (".service", ".target", ".slice"),
        layout.quadlets: (".container",),
        layout.rights: (".rules",),
        layout.users: (".conf",),
    }
    if folder not in kinds or str(path) != f"{path.parent}/{name}" or ".." in path.parts:
        return "deployments have no files there"
    if suffix not in kinds[folder]:
        return f"files of ours end there with {' or '.join(kinds[folder])}"
    found = _OURS.fullmatch(stem.removeprefix("50-") if folder == layout.rights else stem)
    if found is None:
        return "units of ours are named PREFIX-NAME"
    return f"units of {found['prefix']}- are systemd's" if found["prefix"] in TAKEN_PREFIXES else None


def foreign_names(deployment: Deployment, paths: Iterable[Path], layout: Layout) -> Iterator[Finding]:
    """`install/foreign-name` for each of `paths` (as the machine names them) that `deployment` may not have."""
    manifest, services = manifest_of(deployment), None
    if manifest is not None:
        services = [deployment.name, *(s.name for s in manifest.servers), *(s.name for s in manifest.services)]
        services.sort(key=len, reverse=True)
    prefixes = set()
    for path in paths:
        why = not_ours(path, layout, deployment.name)
        if why is None and layout.root / path.parent.relative_to("/") == layout.units:
            vendor = next((v for v in _VENDORS[layout.scope] if _is_there(Path(v) / path.name, layout)), None)
            if vendor is not None:
                why = f"it would replace the one in {vendor}"
            elif services is not None and path.suffix == ".service":
                stem = _RUNG.sub("", path.stem)
                prefix = next((stem.removesuffix(f"-{s}") for s in services if stem.endswith(f"-{s}")), None)
                prefixes.add(prefix)
                if prefix is None or len(prefixes) > 1:
                    why = "it is no server's, no service's and not the runtime's of this deployment"
        if why is not None:
            message = f"{deployment.name} cannot have {path}: {why}"
            note = "`launch render` writes no such file: whoever made this bundle wants more than to run servers"
            yield error_finding("install/foreign-name", message, note)


def manifest_of(deployment: Deployment) -> FleetManifest | None:
    """The manifest among the files of `deployment`; None where it cannot be read."""
    text = next((file.text for file in deployment.files if file.path == "fleet.json"), "")
    try:
        return decode_fleet(text.encode())
    except ConfigError:
        return None


def _is_there(path: Path, layout: Layout) -> bool:
    try:
        return layout.tree.read(layout.root / path.relative_to("/")) is not None
    except OSError:
        return False
