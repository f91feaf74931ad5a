"""Reads a rendered deployment, and checks whether its commands may be executed. I/O."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import msgspec

from launcher.errors import ConfigError
from launcher.ir.fleet import FleetManifest, RoutingTable
from launcher.manifest import argv_digest, decode_fleet, decode_routes


def read_deployment(deployment_dir: Path, *, api_key_file: Path | None = None) -> tuple[FleetManifest, RoutingTable]:
    """`fleet.json` and `routes.json` of a rendered deployment. Raises ConfigError.

    The directory and both files must belong to one of `trusted_owners`, and be writable by their owner alone: the
    commands in them are executed, and another user may have written them. `api_key_file` replaces the one in the
    routes.
    """
    fleet, routes = _read_pair(deployment_dir)
    manifest = decode_fleet(fleet, str(deployment_dir / "fleet.json"))
    table = decode_routes(routes, str(deployment_dir / "routes.json"))
    for server in manifest.servers:
        digests = [(server.argv_digest, server.argv), *((rung.argv_digest, rung.argv) for rung in server.rungs)]
        if any(digest != argv_digest(argv) for digest, argv in digests):
            file = deployment_dir / "fleet.json"
            message = f"{file} cannot be used: argv of {server.name} is not what its digest says"
            raise ConfigError.of("manifest/invalid", message, "run `launch render` to write it again")
    if api_key_file is not None:
        unit = msgspec.structs.replace(table.front, api_key_file=str(api_key_file))
        table = msgspec.structs.replace(table, front=unit)
    return manifest, table


def _read_pair(directory: Path) -> tuple[bytes, bytes]:
    """The bytes of both files, read through the descriptors that were checked. Raises ConfigError."""
    path = directory
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            require_ours(path, os.fstat(descriptor))
            texts = []
            for name in ("fleet.json", "routes.json"):
                path = directory / name
                # never blocks, not even on a pipe that lies there
                file = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=descriptor)
                with os.fdopen(file, "rb") as opened:
                    if not stat.S_ISREG(os.fstat(file).st_mode):
                        raise OSError(errno.EINVAL, "it is no regular file")
                    require_ours(path, os.fstat(file))
                    texts.append(opened.read())
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a path with NUL in it
        message = f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise ConfigError.of("manifest/missing", message, "`launch render` writes it") from None
    return texts[0], texts[1]


def trusted_owners() -> frozenset[int]:
    """Ids of users whose files may say what is executed: our own, root, and the one who became root by sudo."""
    sudo = os.environ.get("SUDO_UID", "") if os.geteuid() == 0 else ""
    return frozenset({0, os.geteuid(), *((int(sudo),) if sudo.isascii() and sudo.isdigit() else ())})


def require_ours(path: Path, facts: os.stat_result) -> None:
    """Raise ConfigError unless `path` belongs to a trusted owner, and only its owner may write it."""
    if facts.st_uid not in trusted_owners():
        why = f"it belongs to user {facts.st_uid}, this runtime runs as {os.getuid()}"
    elif facts.st_mode & 0o022:
        why = f"others than its owner may write it (mode {facts.st_mode & 0o7777:04o})"
    else:
        return
    raise ConfigError.of(
        "manifest/untrusted",
        f"{path} is not taken over: {why}",
        f"chmod go-w {path}, and have it owned by the user that runs the fleet",
    )
