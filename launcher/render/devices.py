"""Names that llama.cpp gives to devices. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from launcher.errors import Finding, Fix, fault
from launcher.ir.backends import BACKENDS
from launcher.ir.config import GpuConfig

_OWN_NAME = re.compile(rf"({'|'.join(BACKENDS)})(\d+)")


class Placement(NamedTuple):
    """Devices by llama.cpp's names, in order, and the `host:port` of each RPC server among them."""

    devices: tuple[str, ...]
    rpc: tuple[str, ...]
    draft: tuple[str, ...] = ()
    """Those of the draft, where it has its own."""
    projector: tuple[str, ...] = ()
    """That of the projector, where it has its own."""

    def buffer(self, device: str) -> str:
        """llama.cpp's name of a device's buffer type: the device's; of an RPC server the first, with its endpoint."""
        number = device.removeprefix("RPC")
        known = device.startswith("RPC") and number.isdecimal() and int(number) < len(self.rpc)
        return f"RPC0[{self.rpc[int(number)]}]" if known else device


def place(names: tuple[str, ...], gpus: Mapping[str, GpuConfig], key: str) -> tuple[Placement, tuple[Finding, ...]]:
    """llama.cpp's names of the devices `names`, for `--device` and `--rpc`; findings at `key` for unknown ones.

    A name of the form `cuda1` says backend and number itself. Others are found in `gpus` (hardware.gpus): the
    number is the position among the entries of that backend. RPC devices count in the order of their endpoints.
    """
    devices: list[str] = []
    rpc: list[str] = []
    findings: list[Finding] = []
    for name in names:
        own = _OWN_NAME.fullmatch(name)
        gpu = gpus.get(name)
        if gpu is not None and gpu.backend == "rpc":
            if gpu.endpoint is None:
                findings.append(_no_endpoint(name))
            devices.append(f"RPC{len(rpc)}")
            rpc.append(gpu.endpoint or "")
        elif own is not None and (gpu is None or gpu.backend == own[1]):
            devices.append(f"{BACKENDS[own[1]].device}{own[2]}")
        elif gpu is not None:
            siblings = [n for n, g in gpus.items() if g.backend == gpu.backend]
            devices.append(f"{BACKENDS[gpu.backend].device}{siblings.index(name)}")
        else:
            findings.append(_unknown(name, gpus, key))
    return Placement(devices=tuple(devices), rpc=tuple(rpc)), tuple(findings)


def _unknown(name: str, gpus: Mapping[str, GpuConfig], key: str) -> Finding:
    there = ", ".join(gpus) or "none"
    return fault("render/unknown-device", key, f"no device {name!r}; hardware has {there}")


def _no_endpoint(name: str) -> Finding:
    key = f"hardware.gpus.{name}.endpoint"
    message = f"device {name} has backend rpc but no endpoint"
    fixes = (Fix(override=f"{key}=127.0.0.1:50052", effect="where its ggml-rpc-server listens"),)
    return fault("render/no-endpoint", key, message, fixes=fixes)
