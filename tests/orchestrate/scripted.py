"""A fleet whose router, validator and workers answer what a test says, behind a real front and orchestrator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import msgspec

from launcher.ir.config import OrchestrationConfig
from launcher.ir.events import Happened
from launcher.ir.fleet import RoutePool, RoutingTable
from launcher.orchestrate import FILE_NAME, Orchestrator
from launcher.route import Front
from tests.route.fleet import FakeFleet, Upstream, running, table, target

ORCHESTRATION: dict[str, Any] = {
    "router": "router",
    "workers": ["coder", "talker"],
    "router_timeout_s": 60.0,
    "rules": [{"words": ["refactor"], "domain": "code"}],
    "validation": {
        "validator": "validator",
        "policy": "none",
        "max_corrections": 3,
        "timeout_s": 60.0,
        "block_tokens": 64,
        "max_blocks": 8,
        "system_prompt": "You judge.",
    },
    "policies": {"code": "block_by_block", "essay": "final", "general": "none"},
    "prompts": {"router": "You sort.", "coder": "You code.", "talker": "You talk."},
}
POOLS = (
    RoutePool(name="code", servers=("coder",), task_types=("code", "code_impl"), expansion_threshold=0),
    RoutePool(name="explore", servers=("talker",), task_types=("explore",), expansion_threshold=0),
)
PASS = '{"status": "PASS", "reason": "fine", "correction": ""}'
DIE = object()
"""A scripted answer: the connection is closed instead."""


def fail(reason: str = "wrong", correction: str = "mend it") -> str:
    """A verdict that asks for a correction."""
    return json.dumps({"status": "FAIL", "reason": reason, "correction": correction})


def decides(domain: str, model: str, policy: str = "none", confidence: float = 1) -> str:
    """A router's decision."""
    return json.dumps(
        {"domain": domain, "recommended_model": model, "validation_policy": policy, "confidence": confidence}
    )


class Role:
    """One scripted server. Its chats get `answers` in turn, the last one for ever.

    A str is the text; a number the HTTP status of an error; `DIE` a closed connection; an awaitable function is
    called with the request and gives one of these.
    """

    def __init__(self, *answers: Any) -> None:
        """Nothing is asked yet."""
        self.answers = list(answers)
        self.chats: list[dict[str, Any]] = []
        self.open = 0
        self.dropped = 0
        self.upstream = Upstream(self._serve)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer until the connection is closed."""
        while True:
            seen = await self.upstream.read(reader)
            path = seen.line.split()[1]
            multipart = (seen.header("content-type") or "").startswith("multipart/")
            body = {} if multipart else json.loads(seen.body or b"{}")
            if path == "/apply-template":
                prompt = "\n".join(f"{m['role']}: {m['content']}" for m in body["messages"])
                self._write(writer, 200, {"prompt": prompt})
            elif path == "/tokenize":
                self._write(writer, 200, {"tokens": list(range(len(body["content"].split())))})
            else:
                self.chats.append(body)
                await self._chat(reader, writer, body)
            await writer.drain()

    async def _chat(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        """Give the next answer; a client that leaves meanwhile is noticed, as llama-server does."""
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            self.open += 1
            answering = asyncio.ensure_future(answer(body))
            leaving = asyncio.ensure_future(reader.read(1))
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            self.open -= 1
            leaving.cancel()
            if not answering.done():
                answering.cancel()
                self.dropped += 1
                raise ConnectionError("the client left")
            answer = answering.result()
        if answer is DIE:
            raise ConnectionError("told to die")
        if isinstance(answer, int):
            self._write(writer, answer, {"error": {"message": "scripted", "code": answer}})
            return
        limit = body.get("max_tokens") or 10**6
        words = answer.split(" ")
        cut = len(words) > limit
        text = " ".join(words[:limit])
        usage = {"prompt_tokens": 10, "completion_tokens": min(len(words), limit)}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        choice["finish_reason"] = "length" if cut else "stop"
        if body.get("stream"):
            delta = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
            events = b"data: " + json.dumps(delta).encode() + b"\n\ndata: [DONE]\n\n"
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(events)
            writer.write(head + events)
            return
        self._write(writer, 200, {"object": "chat.completion", "choices": [choice], "usage": usage})

    def _write(self, writer: asyncio.StreamWriter, status: int, value: object) -> None:
        """An answer in JSON."""
        raw = json.dumps(value).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        writer.write(head.encode() + raw)


class Fleet:
    """What a test has in hand: the roles, the front's address, the memory's file."""

    def __init__(self, roles: dict[str, Role], port: int, path: Path, front: Front, told: list[Happened]) -> None:
        """All is running."""
        self.told = told
        self.router, self.validator = roles["router"], roles["validator"]
        self.coder, self.talker = roles["coder"], roles["talker"]
        self.url = f"http://127.0.0.1:{port}"
        self.path = path
        self.front = front

    async def chat(self, text: str = "Write it.", *, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        """One chat request, whole."""
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
        async with httpx.AsyncClient(timeout=20) as client:
            return await client.post(f"{self.url}/v1/chat/completions", json=body, headers=headers)

    async def get(self, path: str) -> httpx.Response:
        """A GET at the front."""
        async with httpx.AsyncClient(timeout=20) as client:
            return await client.get(self.url + path)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the memory has on disk."""
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            return db.execute(query).fetchall()

    @property
    def blocks(self) -> list[str]:
        """Committed blocks, in order."""
        return [row[0] for row in self.rows("SELECT text FROM block ORDER BY position")]

    @property
    def journal(self) -> list[str]:
        """Kinds of the journal's entries, in order."""
        return [row[0] for row in self.rows("SELECT kind FROM journal ORDER BY seq")]

    @property
    def verdicts(self) -> list[tuple[int, int, str, int]]:
        """Block, attempt, kind and whether committed, of every verdict."""
        return self.rows("SELECT seq, attempt, kind, committed FROM verdict ORDER BY id")  # type: ignore[return-value]


def fleet_table(ports: dict[str, int], orchestration: dict[str, Any] | None, **changes: Any) -> RoutingTable:
    """The routing table of the scripted fleet."""
    sizes = changes.pop("sizes", {})
    units = [target(name, port, n_ctx_per_slot=sizes.get(name, 2048)) for name, port in ports.items()]
    section = msgspec.convert(orchestration, OrchestrationConfig | None)
    return table(*units, **({"default": "talker", "pools": POOLS, "orchestration": section} | changes))


@contextlib.asynccontextmanager
async def scripted_fleet(
    directory: Path,
    *,
    router: Iterable[Any] = ("{}",),
    validator: Iterable[Any] = (PASS,),
    coder: Iterable[Any] = ("[DONE]",),
    talker: Iterable[Any] = ("hello",),
    change: Callable[[dict[str, Any]], None] | None = None,
    **changes: Any,
) -> AsyncIterator[Fleet]:
    """The fleet, served; `change` edits a copy of ORCHESTRATION, `changes` are fields of the table."""
    orchestration = json.loads(json.dumps(ORCHESTRATION))
    if change is not None:
        change(orchestration)
    scripts = {"router": router, "validator": validator, "coder": coder, "talker": talker}
    roles = {name: Role(*answers) for name, answers in scripts.items()}
    async with contextlib.AsyncExitStack() as stack:
        for role in roles.values():
            await stack.enter_async_context(role.upstream)
        ports = {name: role.upstream.port for name, role in roles.items()}
        unit = fleet_table(ports, **({"orchestration": orchestration} | changes))
        orchestrator = Orchestrator(unit, lambda: directory)
        told: list[Happened] = []
        orchestrator.emit = told.append
        front = Front(unit, FakeFleet(), orchestrator=orchestrator)
        port = await stack.enter_async_context(running(front))
        yield Fleet(roles, port, directory / FILE_NAME, front, told)
