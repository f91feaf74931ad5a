"""The fake API server ends whole: no connection of it outlives `close`, whatever its client does."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

from tests.cluster.conftest import certified
from tests.cluster.fake_cluster import Cluster, Link

ASKED = b"GET / HTTP/1.1\r\n\r\n"


class Client:
    """A connection that says only what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, port: int) -> Client:
        """A connection to a port of loopback."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def shake_hands(self, trusted: ssl.SSLContext) -> None:
        """Speak TLS until there is a first answer, and never again."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusted.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        done = False
        while not done:
            try:
                tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                self.writer.write(outgoing.read())
                incoming.write(await self.reader.read(65536))
        tls.write(ASKED)
        self.writer.write(outgoing.read())
        assert await self.reader.read(65536)

    async def is_over(self) -> bool:
        """Whether the other end closes, with a word or without."""
        try:
            async with asyncio.timeout(30):
                with contextlib.suppress(ConnectionResetError):
                    while await self.reader.read(65536):
                        pass
        except TimeoutError:
            return False
        finally:
            self.writer.close()
        return True


async def test_clients_that_never_answer_are_closed(tmp_path: Path) -> None:
    """One connects and shakes no hands; one shook them and never says that it has heard the end."""
    tls = await certified(tmp_path / "account")
    cluster = Cluster({})
    await cluster.open(tls)
    silent, shaken = await Client.to(cluster.port), await Client.to(cluster.port)
    await shaken.shake_hands(ssl.create_default_context(cafile=str(tmp_path / "account/ca.crt")))
    await cluster.close()
    assert (await silent.is_over(), await shaken.is_over()) == (True, True)


async def test_a_link_that_was_cut_is_closed() -> None:
    """Who sent to it and reads nothing has no connection afterwards."""
    cluster = Cluster({})
    await cluster.open()
    link = Link(cluster.port)
    await link.open()
    link.cut()
    client = await Client.to(link.port)
    client.writer.write(ASKED)
    await client.writer.drain()
    await link.close()
    await cluster.close()
    assert await client.is_over()
