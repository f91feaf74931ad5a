"""A piece of a server's memory, before pieces are added up. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

Component = Literal["model", "kv", "recurrent", "output", "compute", "draft", "projector", "overhead"]
"""The components of `launcher.ir.plan.DeviceMemory`."""


class Part(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bytes of one component on one device.

    `committed` at load; `later` = on top of it at full load; `growth` optional; `file` = file-backed pages of
    the model file `source`; `locked` = of committed and file, mlocked by this process; `transient` = needed
    once, while loading.
    """

    device: str
    component: Component
    committed: int = 0
    later: int = 0
    growth: int = 0
    file: int = 0
    locked: int = 0
    transient: int = 0
    source: str = ""
