"""Reads big bodies in a process of its own. I/O: one socket, with `body_reader` at its other end.

A decoder holds the interpreter lock as long as it runs, in any thread: 64 MB of JSON are 0.1 to several seconds in
which no other client would be answered. Bodies are passed as memory (`memfd_create`), questions and replies as msgpack.
"""

from __future__ import annotations

import mmap
import os
import socket
import sys
from typing import Any

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.route.body import filtered
from launcher.route.media import media_in
from launcher.route.peek import BOM, peek
from launcher.route.problem import HttpError
from launcher.route.sticky import beginning

_NICE = 10
_SHORT_BYTES = 32 * 1024
Refused = tuple[int, str, str, str | None]


class BodyQuestion(msgspec.Struct):
    """What to do with the body that is sent along: `model`, `outline` or `filtered`, and its arguments."""

    what: str
    args: tuple[Any, ...]


class BodyReply(msgspec.Struct):
    """The result: a value, a changed body (sent along), or the fields of an HttpError."""

    value: Any = None
    changed: bool = False
    refused: Refused | None = None


def _reply_to(question: BodyQuestion, body: bytes) -> tuple[BodyReply, bytes]:
    """Answer, with a body where it is another than `body`."""
    try:
        if question.what == "model":
            content_type, query, header = question.args
            found = peek(body, content_type, query, header), beginning(body), sorted(media_in(body))
            return BodyReply(value=found), b""
        if question.what == "outline":
            changed = outline(body)
        else:
            defaults, given, strip = question.args
            changed = filtered(body, defaults, given, tuple(strip))
    except HttpError as error:
        return BodyReply(refused=(error.status, error.code, error.message, error.param)), b""
    return (BodyReply(), b"") if changed is body else (BodyReply(changed=True), changed)


def outline(body: bytes) -> bytes:
    """The request with both ends of its last prompt and its short values: enough to route it. Raises HttpError."""
    try:
        sent = msgspec.json.decode(body.removeprefix(BOM), type=dict[str, msgspec.Raw])
        kept: dict[str, Any] = {k: v for k, v in sent.items() if len(bytes(v)) <= _SHORT_BYTES}
        for key in ("messages", "input", "prompt"):
            if key in sent and key not in kept:
                kept[key] = _last(msgspec.json.decode(sent[key]))
    except UNREADABLE as error:
        raise HttpError(400, "invalid_json", f"the body is no JSON object: {error}") from None
    return msgspec.json.encode(kept)


def _last(value: Any) -> Any:
    """The text of a prompt, or of the last user message, cut to both its ends."""
    if isinstance(value, str):
        return value if len(value) <= _SHORT_BYTES else f"{value[: _SHORT_BYTES // 2]}\n{value[-_SHORT_BYTES // 2 :]}"
    users = [m for m in value if isinstance(m, dict) and m.get("role") == "user"] if isinstance(value, list) else []
    content = users[-1].get("content") if users else ""
    if isinstance(content, list):
        texts = [p.get("text") for p in content if isinstance(p, dict)]
        content = "\n".join(text for text in texts if isinstance(text, str))
    return [{"role": "user", "content": _last(content) if isinstance(content, str) else ""}]


def memory_of(parts: bytes) -> int:
    """A descriptor of a memfd that holds `parts`."""
    fd = os.memfd_create("body", os.MFD_CLOEXEC)
    left = memoryview(parts)
    while left:
        left = left[os.write(fd, left) :]
    return fd


def content_of(fd: int) -> bytes:
    """The contents of the memfd `fd`, which is closed."""
    try:
        size = os.fstat(fd).st_size
        if size <= 1 << 30:
            return os.pread(fd, size, 0)
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as memory:  # one read gives 2 GiB at most
            return bytes(memory)
    finally:
        os.close(fd)


def main() -> None:
    """Answer questions until the other end is closed, at a lower CPU priority than the front."""
    os.nice(_NICE)
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        while True:
            data, fds, _, _ = socket.recv_fds(sock, 1 << 20, 1)
            if not data:
                return
            reply, body = _reply_to(msgspec.msgpack.decode(data, type=BodyQuestion), content_of(fds[0]))
            if reply.changed:
                fd = memory_of(body)
                socket.send_fds(sock, [msgspec.msgpack.encode(reply)], [fd])
                os.close(fd)
            else:
                sock.send(msgspec.msgpack.encode(reply))


if __name__ == "__main__":
    main()
