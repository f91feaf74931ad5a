"""`python -m benchmarks.dataplane.sink PORT`: an upstream that reads bodies of any size, and answers."""

from __future__ import annotations

import io
import re
import socketserver
import sys

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Sink(socketserver.StreamRequestHandler):
    """One connection: its requests are read into one buffer."""

    def handle(self) -> None:
        """Until it is closed."""
        buffer = bytearray(1 << 18)
        assert isinstance(self.rfile, io.BufferedReader)
        while head := b"".join(iter(self.rfile.readline, b"\r\n")) if self.rfile.peek(1) else b"":
            found = _LENGTH.search(head)
            left = int(found[1]) if found else 0
            while left and (count := self.rfile.readinto(memoryview(buffer)[: min(left, len(buffer))])):
                left -= count
            self.wfile.write(_ANSWER)


class Server(socketserver.ThreadingTCPServer):
    """A thread a connection."""

    daemon_threads = True
    request_queue_size = 1024


if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Sink).serve_forever()
