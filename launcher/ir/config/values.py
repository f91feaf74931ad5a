"""What stands in fields: sizes, ports, durations, and words to choose from. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

ByteSize = Annotated[int, "bytes"]
"""Bytes; the config decoder also accepts a string with a unit."""

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
NotNegativeNumber = Annotated[float, msgspec.Meta(ge=0, le=1_000_000_000_000)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=10_000_000)]
"""Any duration: up to 116 days. More is a mistake, and systemd and event loops count in small units."""
Limit = Annotated[float, msgspec.Meta(ge=0.001, le=10_000_000)]
"""Seconds of what fails when it is given no time, or would be done without pause."""
StartLimit = Annotated[float, msgspec.Meta(ge=1, le=10_000_000)]
"""Seconds of what takes at least one."""

OwnKvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
KvType = OwnKvType | str
"""llama.cpp's own, or one that the server's engine names among its `cache_types`."""
LoadMode = Literal["mmap", "mlock", "mmap+mlock", "none", "dio"]
SplitMode = Literal["layer", "none", "row", "tensor"]
DraftKind = Literal["simple", "mtp", "eagle3", "dflash", "dspark"]
FlashAttention = Literal["auto", "on", "off"]
Start = Literal["boot", "demand", "never"]
