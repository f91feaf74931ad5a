"""One request from its head to the last byte of its answer: streaming, accounting, errors. I/O.

How it reaches a server is in `Attempt`. `_finish` ends the exchange, exactly once.
"""

from __future__ import annotations

import asyncio
import math
from time import monotonic

from launcher.route.attempt import LEFT, Attempt
from launcher.route.breaker import CLOSED
from launcher.route.client import Client
from launcher.route.head import Head, new_request_id
from launcher.route.oom import out_of_memory_message
from launcher.route.problem import HttpError, stopping, unexpected_answer
from launcher.route.services import Services
from launcher.route.tap import Tap
from launcher.route.target import NO_TOKENS, Target
from launcher.route.timeouts import next_look
from launcher.route.upstream import Connection, UpstreamError
from launcher.route.view import Route


class Exchange(Attempt):
    """One request and its answer; a `launcher.route.connection.Handler`."""

    __slots__ = ("_is_events", "first_at")
    services: Services[Exchange]
    tap: Tap | None = None
    """Copies the answer as it passes."""
    first_at: float
    """When the answer's first part came (monotonic clock); 0: not yet."""
    _is_events: bool
    orchestration: asyncio.Task[None] | None = None
    """The task of an orchestrator that answers instead, see `hand_over`."""
    tokens: tuple[int, int] = NO_TOKENS
    """Tokens of prompt and answer, as the server reported them."""
    parts = 0
    """Events of the stream so far."""
    _has_new_id = False
    """The answer's first part has the completion's id, by which later requests may ask for it."""

    def __init__(self, services: Services[Exchange], client: Client, head: Head, body: bytes | None = None) -> None:
        """`body` None: it is still to come. The id is the client's x-request-id, or a new one."""
        self.services = services
        self.client = client
        self.head = head
        self.view = services.view
        self.id = head.request_id or new_request_id()
        self.began = monotonic()
        self.complete = body is not None
        self.body = body or b""
        self.held = self.status = 0
        self.extra_lines = b"request-id: %b\r\n" % self.id if head.is_anthropic else b""  # its clients know this name
        self.named = self.asked = ""
        self.target = self._route = self._lease = self._connection = None
        self.started = self.ended = self._slot = self._is_events = False
        self._before = self._last = b""
        self.first_at = 0.0

    def opened(self) -> None:
        """Start: the head has arrived, perhaps the body too, and all earlier requests are answered."""
        try:
            if not (self.complete and self.head.passes is self.view):
                self.services.open(self)
                if self.ended or not self.complete:
                    return
            self.services.dispatch(self)
        except Exception as error:  # noqa: BLE001  # a bug of ours must not leave a client without an answer
            self.failed(error)

    def received(self) -> None:
        """Go on: the body has arrived."""
        try:
            self.services.dispatch(self)
        except Exception as error:  # noqa: BLE001  # as above
            self.failed(error)

    # --- the answer -------------------------------------------------------------------------------------------

    def progress(self) -> None:
        """Pass on what the server sent, as far as the client takes it."""
        connection = self._connection
        if self.client.write_paused:
            return
        if connection is None:
            self.drained()
            return
        try:
            if not self.started and not self._begin_answer(connection):
                return
            data, done = connection.take(), connection.complete
            if data:
                self._note(data)
            self.client.write(data, done)
            if self.tap is not None:
                self.tap.add(data, done=done)
            if done:
                self._succeeded()
            elif connection.error is not None:
                self._failed_late(connection.error)
        except Exception as bug:  # noqa: BLE001  # as above
            self.failed(bug)

    def _succeeded(self) -> None:
        target = self.target
        assert target is not None  # noqa: S101  # it answered
        if target.breaker is not CLOSED:
            target.succeeded()
        tokens = target.tokens.read(self._before, self._last)
        if tokens is not NO_TOKENS:
            self.tokens = tokens
            if self._is_events and tokens[1]:
                target.tokens.first_s = self.first_at - self.began
        self._settle(self.status, True, tokens)
        self._finish(self.status)

    def _note(self, data: bytes) -> None:
        """Note when and what the server sent; a stream's first part tells the completion's id."""
        self._before, self._last = self._last, data
        self._heard_at = monotonic()
        self.first_at = self.first_at or self._heard_at
        if self._is_events:
            self.parts += data.count(b"\n\n")
            if self._has_new_id and self.target is not None:
                self._has_new_id = False
                self.services.completions.learn(data, self._owner(self.target))

    def _begin_answer(self, connection: Connection) -> bool:
        """Begin the answer. False: more must arrive first, or the answer is not passed on."""
        target = self.target
        assert target is not None  # noqa: S101  # it was sent
        if not connection.head_done:
            if connection.error is not None:
                self._failed_early(connection.error)
            return False
        status, length = connection.status, connection.length
        if target.may_fail and self._is_failure(target, connection):
            return False
        head = target.answer_for(status, connection.headers)
        if status >= 400 and self._route is not None and self._is_taken_over(self._route, connection):
            return False
        if self._pings is not None and self._pings.begun:
            return self._go_on(connection, is_events=head.is_events)
        if head.is_events:
            self._is_events, length = True, None
            if self.head.takes_slot and len(self.view.targets) > 1:
                self._has_new_id = True
        self.started = True
        self.status = status
        if self.held:
            self.drop_body()  # nobody else is asked now
        self.client.begin(status, b"".join((head.lines, self.id, b"\r\n", self.head.cors, self.extra_lines)), length)
        return True

    def _is_failure(self, target: Target, connection: Connection) -> bool:
        """Whether the answer is, or may yet turn out to be, a failure that is handled here."""
        wrong = target.outside and target.outside.wrong_answer(connection.status, connection.headers)
        if wrong:
            self._failed_early(wrong)
            return True
        is_events = target.answer_for(connection.status, connection.headers).is_events
        if not target.unit.rungs or not (is_events or connection.status >= 500):
            return False
        complete = connection.complete
        error_text = out_of_memory_message(b"".join(connection.chunks), is_events=is_events, complete=complete)
        if error_text is None and connection.error is not None:
            self._failed_early(connection.error)
        elif error_text:
            self._failed_early(UpstreamError("out_of_memory", error_text))
        return error_text is None or bool(error_text)

    def _is_taken_over(self, route: Route, connection: Connection) -> bool:
        """Whether another server may answer what this one refuses, or its reason is not known yet."""
        if self._reroutes(route):
            return True
        if self.is_question or not (route.stronger or self._stronger):
            return False
        return not (connection.complete or connection.error is not None) or self._escalates(connection)

    def _go_on(self, connection: Connection, *, is_events: bool) -> bool:
        """Begin an answer whose header is out already: whether the server's answer is an event stream, too."""
        if connection.status == 200 and is_events:
            self._pings = None  # a circle with this
            self._is_events = self.started = True
            self._has_new_id = len(self.view.targets) > 1
            self.drop_body()
            return True
        if connection.complete or connection.error is not None:
            problem = unexpected_answer(connection.status, b"".join(connection.chunks))
            self._settle(problem.status)
            self.refuse(problem)
        return False

    @property
    def _has_begun(self) -> bool:
        """Whether a stream's header went out while the request waited."""
        return self._pings is not None and self._pings.begun

    def refuse(self, problem: HttpError) -> None:
        """Answer with an error; as an event where a stream's header is out already."""
        if self._has_begun and not (self.started or self.ended):
            self.end_events(problem, at_boundary=True)
        else:
            super().refuse(problem)

    # --- the end ----------------------------------------------------------------------------------------------

    def _finish(self, status: int, code: str = "-") -> None:
        """End the exchange: nothing more is written. `code`: of an error of the front."""
        services = self.services
        self.ended = True
        self.body = b""
        if self.held:
            self.drop_body()
        services.note(self, status, code)
        if code != "-" or services.has_access_log:
            services.note_answer(self, status, code)
        if self.on_end is not None:
            self.on_end()
            self.on_end = None  # a circle with this
        self.client.answered()

    def _failed_early(self, error: UpstreamError) -> None:
        """The server failed before its answer began: try again where that is safe, else answer an error."""
        target, connection = self.target, self._connection
        assert target is not None  # noqa: S101  # it was asked
        if error.reason == "stale" and not self._fresh:
            self._connection = None
            if connection is not None:
                target.pool.put_back(connection)
            self.run(self._pursue, target, None)
        elif error.reason == "refused" or (
            self._oom_retries < target.unit.rungs and error.reason in ("died", "out_of_memory")
        ):
            if connection is not None:
                connection.watcher = None  # what it still says is not passed on
            self.run(self._pursue, target, error)
        else:
            self.refuse(self._settle_failure(error))

    def _failed_late(self, error: UpstreamError) -> None:
        """The server failed within its answer: end a stream with an error event, cut any other answer."""
        tail = (self._before + self._last)[-4:]
        problem = self._settle_failure(error)
        if not self._is_events or self.client.write_paused:
            self._cut(problem)
            return
        self.end_events(problem, at_boundary=not tail or tail.endswith((b"\n\n", b"\r\n\r\n")))

    def failed(self, error: BaseException) -> None:
        """Answer an exception: a refusal of the front, or a bug (500)."""
        self._abandon()
        super().failed(error)

    # --- from outside -----------------------------------------------------------------------------------------

    def client_left(self) -> None:
        """The client disconnected: closing the upstream connection cancels the generation."""
        if self.ended:
            return
        self.gone = True
        self._stop_waiting(UpstreamError("client_gone", "the client left"))
        if self.orchestration is not None:
            self.orchestration.cancel()
        self._abandon()
        self._finish(LEFT)

    def overdue(self) -> None:
        """Time the request out if its server was silent, or has taken, for too long."""
        target = self.target
        if self.ended or self._lease is None or target is None:
            return
        silence_s = math.inf if self._route is None else self._route.timeouts_s[target.name]
        verdict = next_look(monotonic(), self._heard_at, silence_s, self._sent_at, target.unit.total_timeout_s)
        if isinstance(verdict, float):
            self.client.set_answer_deadline(verdict)
            return
        error = UpstreamError("timeout", verdict)
        self._stop_waiting(error)
        if self.started:
            self._failed_late(error)
        else:
            self._failed_early(error)

    def stop(self) -> None:
        """The front's drain is over: end the request."""
        self._end(UpstreamError("stopping", "the front is stopping"), stopping())

    def cancel(self) -> None:
        """End the request by an operator's order; its slot is free again."""
        by_hand = HttpError(503, "request_cancelled", "this request was ended by hand")
        self._end(UpstreamError("stopping", str(by_hand)), by_hand)

    def _end(self, error: UpstreamError, problem: HttpError) -> None:
        if self.ended:
            return
        if self.orchestration is not None and self._lease is None and self._task is None:
            self.orchestration.cancel()  # it says itself how far it came
            return
        self._stop_waiting(error)
        self._abandon()
        self.refuse(problem)

    def _stop_waiting(self, error: UpstreamError) -> None:
        """Cancel what is waited for, and close the upstream connection."""
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            self._connection.abort(error)
