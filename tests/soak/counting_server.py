"""A stand-in for llama-server that notes every request that it begins: `--port N --model PATH --tally FILE`.

Standard library only. The answer names the server and the request; `stream` gives it in two events.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys


class Server:
    """Answers health, props and completions."""

    def __init__(self, model: str, tally: str) -> None:
        """One line a request in `tally`: its id."""
        self._model = model
        self._tally = os.open(tally, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests of one connection, one after the other."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *fields = head.decode("latin-1").split("\r\n")
                named = {n.lower(): v.strip() for n, _, v in (field.partition(":") for field in fields)}
                body = await reader.readexactly(int(named.get("content-length", "0")))
                path = line.split(" ")[1]
                if path == "/health":
                    writer.write(whole({"status": "ok"}))
                elif path == "/props":
                    writer.write(whole({"model_path": self._model, "total_slots": 2}))
                else:
                    await self.complete(writer, json.loads(body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def complete(self, writer: asyncio.StreamWriter, asked: dict[str, object]) -> None:
        """Note it first: from here on it was executed."""
        told = asked.get("metadata")
        told = told if isinstance(told, dict) else {}  # a start is proven by a request without
        if "id" in told:
            os.write(self._tally, f"{told['id']}\n".encode())
        await asyncio.sleep(told.get("sleep_s", 0))
        said = {"content": f"{self._model} {told.get('id')}", "tokens_predicted": 1}
        if not asked.get("stream"):
            writer.write(whole(said))
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in ({"content": "…"}, said):
            data = f"data: {json.dumps(event)}\n\n".encode()
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
            await asyncio.sleep(0.002)
        writer.write(b"0\r\n\r\n")


def whole(value: object) -> bytes:
    """An answer of JSON."""
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tally", required=True)
    parser.add_argument("--timeout")
    parser.add_argument("-t")
    options = parser.parse_args()
    server = Server(options.model, options.tally)
    listening = await asyncio.start_server(server.connection, "127.0.0.1", options.port)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 0)
    await listening.serve_forever()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
