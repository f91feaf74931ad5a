"""How closed a container is, whoever runs it: one definition for `podman run`, `docker run` and Quadlet files. Pure."""

from __future__ import annotations

from launcher.ir.config import ContainerConfig, ServiceConfig
from launcher.render.unit_names import is_loopback

_MIB = 1024**2


def published_ports(config: ServiceConfig, container: ContainerConfig) -> tuple[str, ...]:
    """Ports as they are published: of a service for this machine only, on loopback."""
    near = "127.0.0.1:" if is_loopback(config.host) else ""
    return tuple(port if port.count(":") > 1 else near + port for port in container.ports)


def memory_limit(ram_bytes: int) -> int:
    """The memory limit of a service that takes `ram_bytes`, 0 for none: a quarter and 256 MiB more."""
    return ram_bytes + ram_bytes // 4 + 256 * _MIB if ram_bytes else 0


def container_argv(config: ServiceConfig, name: str, engine: str) -> tuple[str, ...]:
    """The command line that runs a service's image in the foreground; the container is removed when it ends."""
    container = config.container
    if container is None:
        return ()
    limit = memory_limit(config.ram_bytes)
    return (
        *(engine, "run", "--rm", *(("--replace",) if engine == "podman" else ()), f"--name={name}"),
        *("--read-only", "--tmpfs=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges"),
        *((f"--memory={limit}",) if limit else ()),
        *(f"--publish={port}" for port in published_ports(config, container)),
        *(f"--volume={volume}" for volume in container.volumes),
        *(f"--env={key}={value}" for key, value in sorted(config.env.items())),
        *(container.image, *container.args),
    )
