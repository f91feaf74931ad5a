"""One validated answer: carries out the actions of the cycle, and reports their outcomes to it. I/O."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, assert_never

import msgspec

from launcher.ir.exchange import Exchange, Headers, Refusal
from launcher.orchestrate import cycle
from launcher.orchestrate.answer import AnswerFormat
from launcher.orchestrate.ask import Server, Sizes, exceeds_context
from launcher.orchestrate.context import (
    VERDICT_TOKENS,
    Message,
    Task,
    judge_prompt,
    judge_question,
    sampling,
    worker_prompt,
)
from launcher.orchestrate.echo import Echo
from launcher.orchestrate.memory import Keeper, OpenGeneration, ProjectMemory
from launcher.orchestrate.settings import Orchestration
from launcher.orchestrate.tally import Tally
from launcher.orchestrate.verdict import Verdict, parse_verdict

_JUDGE_TOKENS = 256
"""Kept free in the validator's slot for its system prompt and part of the request."""
_LEAST_ROOM_TOKENS = 64
"""A prompt that leaves a worker fewer tokens to write is refused."""


class WriteJob(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be generated for a client. `token_limit` is its own, for the whole answer; None for none."""

    model: str
    task: Task
    asked: str
    """The request's text, for the validator."""
    request: dict[str, Any]
    token_limit: int | None
    context_blocks: int
    """How many of the project's earlier blocks the worker may be shown."""
    stream: bool
    stream_usage: bool
    timeout_s: float
    """For one answer of the worker; its server gives up by itself before."""
    echo: Echo
    """What of the worker's text is ours."""


class Generation:
    """One run of the cycle for one client."""

    def __init__(
        self,
        exchange: Exchange,
        jobs: Sequence[WriteJob],
        opened: OpenGeneration,
        headers: Headers,
        *,
        settings: Orchestration,
        keeper: Keeper,
        sizes: Sizes,
        tally: Tally,
    ) -> None:
        """`headers`: of the client's answer. `jobs`: one per worker, the first one's, then those that may take over.

        Sends no request yet.
        """
        self._exchange, self._opened, self._headers = exchange, opened, headers
        self._jobs, self._job = jobs, jobs[0]
        self._task = self._job.task
        self._settings, self._keeper, self._sizes, self._tally = settings, keeper, sizes, tally
        self._blocks = list(opened.committed)
        self._has_begun = False
        """The headers of the client's stream are sent."""
        self._writer = self._job.model
        """The server that wrote last."""
        self._spent = self._wrote = 0
        """Tokens of all committed blocks, and of the text written last."""
        self._usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        self._shape = AnswerFormat(generation=opened.id, model=self._job.model, created=int(time.time()))
        self._over = opened.known == "complete"

    async def run(self) -> None:
        """Run until the answer is complete or given up. Committed blocks stay, however this ends."""
        validation = self._settings.validation
        limits = cycle.CycleLimits(
            max_corrections=validation.max_corrections,
            max_blocks=1 if self._job.task.whole else validation.max_blocks,
            max_retries=self._settings.max_retries,
            escalations=len(self._jobs) - 1,
        )
        state, actions = cycle.begin(limits, self._opened.committed, self._opened.ends)
        todo = deque(actions)
        try:
            await self._prepare()
            while todo:
                event = await self._do(todo.popleft())
                if event is not None:
                    state, actions = cycle.step(state, event)
                    todo.extend(actions)
        except asyncio.CancelledError:
            await self._cut()
            raise
        except Refusal as refusal:
            await self._end("failed", refusal.code, refusal.message)
            refusal.headers = self._headers
            if not self._has_begun:
                raise
            await self._exchange.fail(refusal)
        except Exception:
            await self._end("failed", "internal_error", "an internal error")
            raise

    async def _prepare(self) -> None:
        """Load the project's earlier blocks. Raises Refusal where the worker of a resumed answer is gone."""
        if self._job.model not in self._settings.slots:
            message = f"the fleet has no {self._job.model!r} any more, which began this answer"
            raise Refusal(409, "generation_mismatch", message)
        if self._job.context_blocks:
            blocks = await self._keeper.do(ProjectMemory.recent_blocks, self._opened, self._job.context_blocks)
            self._task = msgspec.structs.replace(self._task, project=blocks)

    async def _do(self, action: cycle.Action) -> cycle.Event | None:
        match action:
            case cycle.Write():
                return await self._with_pings(self._write(action), f"writing block={action.seq + 1}")
            case cycle.Escalate():
                await self._escalate(action)
            case cycle.Judge():
                return await self._with_pings(self._judge(action), f"judging block={action.seq + 1}")
            case cycle.Commit():
                return await self._commit(action)
            case cycle.Deliver():
                await self._deliver(action)
            case cycle.Finish():
                await self._finish(action.reason)
            case cycle.GiveUp():
                await self._give_up(action)
            case _:
                assert_never(action)
        return None

    async def _with_pings(self, doing: Coroutine[Any, Any, cycle.Event], what: str) -> cycle.Event:
        """Do `doing`; a client that streams gets a comment after every silence of `ping_after_s` seconds."""
        every_s = self._settings.ping_after_s if self._job.stream else 0
        if not every_s:
            return await doing
        task = asyncio.ensure_future(doing)
        try:
            while not (await asyncio.wait({task}, timeout=every_s))[0]:
                await self._begin()
                await self._exchange.event(f": ping {what} server={self._job.model}\n\n".encode())
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            await self._exchange.events(self._headers)

    # the worker

    async def _write(self, action: cycle.Write) -> cycle.Event:
        if action.verdict is not None:
            self._tally.corrected(self._job.model, self._opened.id, action.seq)
        worker = Server(self._exchange, self._job.model, self._job.timeout_s, self._sizes)
        try:
            messages, room = await self._prompt(action, worker)
            question = sampling(self._job.request) | {"messages": messages, "max_tokens": room}
            reply = await worker.chat(question, as_caller=True)
        except TimeoutError:
            message = f"no answer within {self._job.timeout_s:g} s"
            return cycle.WriteFailed(status=504, code="worker_timeout", message=message, again=False)
        except Refusal as refusal:
            stopping = refusal.code == "front_stopping"
            return cycle.WriteFailed(
                status=refusal.status,
                code=refusal.code,
                message=refusal.message,
                again=refusal.status in (502, 503) and not stopping,
                refused=not stopping and (refusal.status >= 500 or exceeds_context(refusal)),
            )
        self._writer, self._wrote = reply.server, reply.completion_tokens
        self._usage["prompt_tokens"] += reply.prompt_tokens
        self._usage["completion_tokens"] += reply.completion_tokens
        self._usage["total_tokens"] += reply.prompt_tokens + reply.completion_tokens
        whole, limit = self._job.task.whole, self._job.token_limit
        text, last = self._job.echo.strip_from(reply.text, whole=whole)
        is_cut = reply.reason == "length" and (whole or (limit is not None and self._spent + self._wrote >= limit))
        return cycle.Wrote(text=text, ends="length" if is_cut else "stop" if last else "")

    async def _escalate(self, action: cycle.Escalate) -> None:
        before, project = self._job.model, self._task.project
        self._job = self._jobs[action.rung]
        self._task = msgspec.structs.replace(self._job.task, project=project)
        model = self._writer = self._job.model
        if not self._has_begun:
            self._shape = msgspec.structs.replace(self._shape, model=model)
        self._exchange.escalated(before, model, action.why)
        self._headers = [(k, model.encode() if k == b"x-launch-server" else v) for k, v in self._headers]
        self._tally.escalated(before, model, self._opened.id, action)
        data = {"seq": action.seq, "from": before, "to": model, "why": action.why}
        await self._keeper.do(ProjectMemory.escalated, self._opened, data)

    async def _prompt(self, action: cycle.Write, worker: Server) -> tuple[list[Message], int]:
        """The messages for the worker, and its limit of tokens to write. Raises Refusal, TimeoutError."""
        job = self._job
        slot = self._settings.slots[job.model]
        left = None if job.token_limit is None else max(1, job.token_limit - self._spent)
        most = (
            self._max_block_tokens
            if job.task.whole
            else min(self._settings.validation.block_tokens, self._max_block_tokens)
        )
        most = most if left is None else min(most, left)
        reserve = min(most, slot // 4 if left is None and job.task.whole else slot // 2)
        prompt = worker_prompt(self._task, self._blocks, action.rejected, action.verdict)
        found = await worker.fitted(prompt, slot - reserve)
        if found is None:
            found = await worker.fitted(prompt, slot - min(_LEAST_ROOM_TOKENS, reserve))
        if found is None:
            message = f"the request does not fit a slot of {job.model!r}, which has {slot} tokens"
            raise Refusal(400, "context_length_exceeded", message, param="messages")
        messages, size = found
        return messages, min(most, slot - size)

    @property
    def _max_block_tokens(self) -> int:
        """Tokens of the longest block that fits the validator's slot, beside its prompt and its verdict."""
        slot = self._settings.slots[self._settings.validator]
        return max(_LEAST_ROOM_TOKENS, slot - VERDICT_TOKENS - _JUDGE_TOKENS)

    # the validator

    async def _judge(self, action: cycle.Judge) -> Verdict:
        """Let the validator judge a block; the lack of a verdict is a verdict too."""
        began = time.perf_counter()
        timeout_s = self._settings.validation.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                verdict = await self._verdict(action)
        except TimeoutError:
            verdict = Verdict(kind="timeout", reason=f"no verdict within {timeout_s:g} s")
        except Refusal as refusal:
            verdict = Verdict(kind="timeout" if refusal.status == 504 else "unavailable", reason=refusal.message)
        seconds = round(time.perf_counter() - began, 6)
        draft = action.text if verdict.kind != "pass" else ""
        verdict = msgspec.structs.replace(verdict, server=self._settings.validator, seconds=seconds, draft=draft)
        self._tally.judged(verdict, self._opened.id, action.seq, action.attempt)
        if verdict.kind != "pass":
            correction = f"\n{verdict.correction}" if verdict.correction else ""
            note = f"[{verdict.kind.upper()}] block {action.seq + 1}: {verdict.reason}{correction}"
            await self._keeper.do(ProjectMemory.note, self._opened.project, self._opened.id, note)
        return verdict

    async def _verdict(self, action: cycle.Judge) -> Verdict:
        settings = self._settings
        validator = Server(self._exchange, settings.validator, settings.validation.timeout_s, self._sizes)
        slot = settings.slots[validator.name]
        prompt = judge_prompt(settings.validation.system_prompt, self._job.asked, self._blocks, action.text)
        found = await validator.fitted(prompt, slot - VERDICT_TOKENS)
        if found is None:
            message = f"the block does not fit a slot of {validator.name!r}, which has {slot} tokens"
            raise Refusal(422, "validator_context", message)
        reply = await validator.chat(judge_question(found[0]))
        return parse_verdict(reply.text)

    # what is kept and what goes out

    async def _commit(self, action: cycle.Commit) -> cycle.Event:
        try:
            await self._keeper.do(ProjectMemory.commit, self._opened, action, self._writer)
        except Refusal as refusal:
            return cycle.CommitFailed(message=refusal.message)
        self._blocks.append(action.text)
        self._spent += self._wrote
        self._tally.committed(self._writer, self._opened.id, action)
        return cycle.Committed()

    async def _deliver(self, action: cycle.Deliver) -> None:
        if not self._job.stream:
            return
        await self._begin()
        await self._exchange.event(self._shape.block(action.seq, action.text))

    async def _finish(self, reason: cycle.Ends) -> None:
        await self._end("complete")
        if not self._job.stream:
            await self._exchange.whole(200, self._shape.whole(self._blocks, reason, self._usage), self._headers)
            return
        await self._begin()
        usage = self._usage if self._job.stream_usage else None
        await self._exchange.event(self._shape.last(reason, usage), more=False)

    async def _give_up(self, action: cycle.GiveUp) -> None:
        await self._end("failed", action.code, action.message, action.seq, action.verdicts)
        await self._exchange.fail(self._refusal(action.status, action.code, action.message))

    async def _cut(self) -> None:
        """The client disconnected, or the runtime ends: note it on disk, and tell a client that is still there."""
        if self._exchange.gone:
            await self._end("cancelled", "client_left", "the client left")
            return
        await self._end("interrupted", "front_stopping", "the runtime ended")
        if not self._exchange.finished:
            found = await self._keeper.do(ProjectMemory.report, self._opened.id, self._exchange.caller)
            self._blocks = found["blocks"] if found else self._blocks  # the last may have been committed just now
            await self._exchange.fail(self._refusal(503, "front_stopping", "the front is stopping"))

    def _refusal(self, status: int, code: str, message: str) -> Refusal:
        """An error with the committed blocks, and the id to resume with."""
        details = {"generation": self._opened.id, "committed": list(self._blocks)}
        return Refusal(status, code, message, details=details, headers=self._headers)

    async def _end(self, status: str, code: str = "", *rest: Any) -> None:
        """Note the outcome, once. Raises Refusal where the disk fails at a complete answer only."""
        if self._over:
            return
        self._over = True
        self._tally.ended(self._job.model, self._opened.id, status, len(self._blocks), code)
        try:
            await self._keeper.do(ProjectMemory.end, self._opened, status, code, *rest)
        except Refusal:
            if status == "complete":
                raise
