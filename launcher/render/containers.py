"""How closed a container is, whoever runs it: one definition for `podman run`, `docker run` and Quadlet files. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_letters
from typing import NamedTuple

from launcher.ir.config import ContainerConfig, GpuConfig, ServiceConfig
from launcher.render.devices import place
from launcher.render.unit_names import is_loopback

_CDI = {"cuda": "nvidia.com/gpu"}
"""Backend → kind of the Container Device Interface, whose names are of single cards (NVIDIA's container toolkit)."""
_NODES = {"rocm": ("/dev/kfd", "/dev/dri"), "vulkan": ("/dev/dri",), "sycl": ("/dev/dri",)}
"""Backend → what its drivers open: nodes of all cards, whose numbers are not llama.cpp's."""
_SEEN = {"rocm": "ROCR_VISIBLE_DEVICES", "sycl": "ZE_AFFINITY_MASK"}
"""Backend → the variable that shows a process only some of its cards, by number."""
_MIB = 1024**2


class Cards(NamedTuple):
    """The cards of a container: devices by name or node, environment that chooses among cards, numbers for docker."""

    devices: tuple[str, ...]
    env: dict[str, str]
    numbers: tuple[str, ...]
    """Of NVIDIA's."""

    @property
    def group(self) -> bool:
        """Whether nodes among them are opened by right of a group, render or video."""
        return any(device.startswith("/") for device in self.devices)


def cards(config: ServiceConfig, gpus: Mapping[str, GpuConfig]) -> Cards:
    """What the container of a service gets for its `vram_bytes`; what it says in `env` itself is kept."""
    by_backend: dict[str, list[str]] = {}
    for device in config.vram_bytes:
        if device in gpus:
            placement, _ = place((device,), gpus, "")
            by_backend.setdefault(gpus[device].backend, []).append(_number(placement.devices[0]))
    devices = [f"{kind}={number}" for backend, kind in _CDI.items() for number in by_backend.get(backend, ())]
    devices += [node for backend in by_backend for node in _NODES.get(backend, ())]
    shown = {_SEEN[backend]: ",".join(numbers) for backend, numbers in by_backend.items() if backend in _SEEN}
    return Cards(
        devices=tuple(dict.fromkeys(devices)),
        env={key: value for key, value in shown.items() if key not in config.env},
        numbers=tuple(by_backend.get("cuda", ())),
    )


def _number(device: str) -> str:
    """`1` of llama.cpp's `CUDA1`."""
    return device.lstrip(ascii_letters)


def published_ports(config: ServiceConfig, container: ContainerConfig) -> tuple[str, ...]:
    """Ports as they are published: of a service for this machine only, on loopback."""
    near = "127.0.0.1:" if is_loopback(config.host) else ""
    return tuple(port if port.count(":") > 1 else near + port for port in container.ports)


def memory_limit(ram_bytes: int) -> int:
    """The memory limit of a service that takes `ram_bytes`, 0 for none: a quarter and 256 MiB more."""
    return ram_bytes + ram_bytes // 4 + 256 * _MIB if ram_bytes else 0


def container_argv(config: ServiceConfig, name: str, engine: str, gpus: Mapping[str, GpuConfig]) -> tuple[str, ...]:
    """The command line that runs a service's image in the foreground; the container is removed when it ends."""
    container = config.container
    if container is None:
        return ()
    limit, own = memory_limit(config.ram_bytes), cards(config, gpus)
    env = {**own.env, **config.env}
    return (
        *(engine, "run", "--rm", *(("--replace",) if engine == "podman" else ()), f"--name={name}"),
        *("--read-only", "--tmpfs=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges"),
        *((f"--memory={limit}",) if limit else ()),
        *_card_words(own, engine),
        *(f"--publish={port}" for port in published_ports(config, container)),
        *(f"--volume={volume}" for volume in container.volumes),
        *(f"--env={key}={value}" for key, value in sorted(env.items())),
        *(container.image, *container.args),
    )


def _card_words(own: Cards, engine: str) -> tuple[str, ...]:
    """Options that give a container its cards.

    docker takes NVIDIA's by number, several in quotes of their own since it reads the value as CSV; for podman whoever
    runs it hands on his groups (`keep-groups`), which docker does not know: there root owns the nodes.
    """
    if engine != "podman":
        nodes = tuple(f"--device={device}" for device in own.devices if device.startswith("/"))
        numbers = f"device={','.join(own.numbers)}"
        quoted = f'"{numbers}"' if len(own.numbers) > 1 else numbers
        return (*((f"--gpus={quoted}",) if own.numbers else ()), *nodes)
    return (*(f"--device={device}" for device in own.devices), *(("--group-add=keep-groups",) if own.group else ()))
