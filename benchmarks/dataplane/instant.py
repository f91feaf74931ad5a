"""`python -m benchmarks.dataplane.instant PORT`: an upstream that answers, or streams 200 events, at once."""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

BODY = b'{"choices":[{"message":{"role":"assistant","content":"' + b"x" * 300 + b'"}}]}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
EVENT = b'data: {"choices":[{"delta":{"content":"token"}}]}\n\n'
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS = 200


class Instant(asyncio.Protocol):
    """Answers each request when its announced length is there.

    `/stream` gives 200 chunks, one a loop iteration; `/idle` gives one and then nothing.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast("asyncio.Transport", transport)
        self.loop = asyncio.get_running_loop()
        self.data = b""

    def data_received(self, data: bytes) -> None:
        """Answer what is complete."""
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].lower()
            start = head.find(b"content-length: ")
            length = int(head[start + 16 :].split(b"\r\n", 1)[0]) if start > 0 else 0
            if len(self.data) < end + 4 + length:
                return
            streams, idles = b"/stream " in head, b"/idle " in head
            self.data = self.data[end + 4 + length :]
            if streams:
                self.transport.write(STREAM_HEAD)
                self.loop.call_soon(self.chunk, CHUNKS)
            elif idles:
                self.transport.write(STREAM_HEAD + CHUNK)
            else:
                self.transport.write(ANSWER)

    def chunk(self, left: int) -> None:
        """One chunk, then the next one."""
        if self.transport.is_closing():
            return
        if left == 0:
            self.transport.write(b"0\r\n\r\n")
            return
        self.transport.write(CHUNK)
        self.loop.call_soon(self.chunk, left - 1)


async def main(port: int) -> None:
    """Serve until terminated."""
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
