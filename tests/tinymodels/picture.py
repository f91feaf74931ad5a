"""An image to show to a model that reads images."""

from __future__ import annotations

import base64
import struct
import zlib


def png(width: int, height: int) -> str:
    """A grey ramp as a PNG data URL."""
    rows = b"".join(b"\0" + bytes((x + y) % 256 for x in range(width) for _ in range(3)) for y in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    image = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(image).decode()
