"""Translates Ollama's API to OpenAI's: requests one way, answers the other. Pure.

By Ollama's published description of its API (docs/api.md). What has no counterpart in llama-server is left out:
`num_ctx` and `keep_alive` are decided by the fleet, templates by the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from launcher.base.decoding import UNREADABLE
from launcher.ir.fleet import RouteTarget
from launcher.route.listing import n_ctx
from launcher.route.peek import BOM
from launcher.route.problem import HttpError

VERSION = "0.12.0"
"""The version of Ollama whose API is followed: clients choose by it what they may ask."""
_SAME = frozenset(
    [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "typical_p",
        "seed",
        "repeat_penalty",
        "repeat_last_n",
        "presence_penalty",
        "frequency_penalty",
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
        "stop",
    ]
)
"""Options that llama-server knows by the same name."""
_IMAGES = {"/9j/": "jpeg", "iVBOR": "png", "R0lG": "gif", "UklG": "webp"}
"""Image formats by the first characters of their base64."""
_NS_PER_MS = 1_000_000


class _Called(msgspec.Struct):
    name: str = ""
    arguments: dict[str, Any] | None = None


class _ToolCall(msgspec.Struct):
    function: _Called = msgspec.field(default_factory=_Called)


class _Message(msgspec.Struct):
    role: str
    content: str | None = None
    images: list[str] | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_name: str | None = None
    thinking: str | None = None


class OllamaRequest(msgspec.Struct):
    """A body of `/api/chat`, `/api/generate`, `/api/embed`, `/api/embeddings` or `/api/show`."""

    model: str = ""
    name: str = ""
    messages: list[_Message] | None = None
    prompt: str | None = None
    input: str | list[str] = ""
    suffix: str | None = None
    system: str | None = None
    images: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    dimensions: int | None = None
    stream: bool | None = None
    think: bool | str | None = None
    raw: bool | None = None
    keep_alive: float | str | None = None

    @property
    def unloads_after(self) -> bool:
        """Whether `keep_alive` is 0: the model is to be unloaded after the answer."""
        return self.keep_alive in (0, "0", "0s", "0m")


def parse_request(body: bytes) -> OllamaRequest:
    """The request in a body. Raises HttpError 400."""
    try:
        asked = msgspec.json.decode(body.removeprefix(BOM) or b"{}", type=OllamaRequest)
    except UNREADABLE as error:
        raise HttpError(400, "invalid_json", f"the body is not understood: {error}") from None
    asked.model = asked.model or asked.name
    if not asked.model:
        raise HttpError(400, "model_required", "model is required", param="model")
    return asked


def chat_body(asked: OllamaRequest) -> dict[str, Any]:
    """The body for `/v1/chat/completions`."""
    messages = asked.messages
    if not messages:
        system = [_Message("system", asked.system)] if asked.system else []
        messages = [*system, _Message("user", asked.prompt, asked.images)]
    body = _settings(asked) | {"messages": [_message(message) for message in messages]}
    if asked.tools:
        body["tools"] = asked.tools
    if asked.think is not None:
        body["chat_template_kwargs"] = {"enable_thinking": bool(asked.think)}
    return body


def raw_body(asked: OllamaRequest) -> dict[str, Any]:
    """The body for `/v1/completions`."""
    return _settings(asked) | {"prompt": asked.prompt or ""}


def _settings(asked: OllamaRequest) -> dict[str, Any]:
    options = asked.options or {}
    body = {name: value for name, value in options.items() if name in _SAME}
    limit = options.get("num_predict")
    if isinstance(limit, int) and limit >= -1:
        body["max_tokens"] = limit
    if asked.format == "json":
        body["response_format"] = {"type": "json_object"}
    elif isinstance(asked.format, dict):
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": asked.format}}
    return body | {"model": asked.model, "stream": True, "stream_options": {"include_usage": True}}


def _message(message: _Message) -> dict[str, Any]:
    """One message in OpenAI's format: the function's name links a call with its result."""
    made: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.images:
        urls = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in message.images]
        made["content"] = [{"type": "text", "text": made["content"]}, *urls]
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "id": f"call_{call.function.name}",
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": msgspec.json.encode(call.function.arguments or {}).decode(),
                },
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        made["tool_call_id"] = f"call_{message.tool_name or ''}"
    return made


def _data_url(image: str) -> str:
    kind = next((kind for begin, kind in _IMAGES.items() if image.startswith(begin)), "png")
    return f"data:image/{kind};base64,{image}"


class _CallPart(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    function: _CallPart | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Timings(msgspec.Struct):
    prompt_ms: float | None = None
    predicted_ms: float | None = None


class _Chunk(msgspec.Struct):
    error: Any = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None


class _Vector(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class _Vectors(msgspec.Struct):
    """A server's answer to `/v1/embeddings`."""

    data: list[_Vector]
    usage: _Usage | None = None


_Said = TypeVar("_Said", _Chunk, _Vectors)


class OllamaAnswer:
    """What comes of a stream of OpenAI's: Ollama's parts, or one answer where the client wants no stream.

    `is_chat`: the answer is a message, not a `response`.
    """

    def __init__(self, asked: OllamaRequest, *, is_chat: bool) -> None:
        self._model = asked.model
        self._is_chat = is_chat
        self._is_whole = asked.stream is False
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._rest = b""
        self._finish = ""
        self._calls: dict[int, list[str]] = {}
        """Name and arguments by the index of the call."""
        self._counted: dict[str, int] = {}

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The parts that `data`, a piece of the stream, brings, but the last. Raises HttpError for an error in it."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        parts: list[dict[str, Any]] = []
        for line in lines:
            if line.startswith(b"data:") and (text := line[5:].strip()) != b"[DONE]":
                parts += self._part(_read(text, _Chunk))
        return parts

    def last(self) -> dict[str, Any]:
        """The last part, or the answer: why it ended, and what it took. Raises HttpError where the stream broke off."""
        if not self._finish:
            raise HttpError(502, "upstream_died", "the server's answer broke off")
        calls = [{"function": {"name": name, "arguments": _arguments(given)}} for name, given in self._calls.values()]
        more = {"tool_calls": calls} if calls else {}
        return self.ended("length" if self._finish == "length" else "stop", more) | self._counted

    def ended(self, reason: str, more: dict[str, Any] | None = None) -> dict[str, Any]:
        """The end of an answer, which is all of it where a model is only loaded or unloaded."""
        message = self._message("".join(self._texts), "".join(self._thoughts), more or {})
        return message | {"done": True, "done_reason": reason}

    def _part(self, chunk: _Chunk) -> Iterable[dict[str, Any]]:
        error = chunk.error
        if error is not None:
            message = error.get("message") if isinstance(error, dict) else None
            raise HttpError(500, "upstream_failed", str(message or error))
        self._count(chunk.usage or _Usage(), chunk.timings or _Timings())
        for choice in chunk.choices or ():
            self._finish = choice.finish_reason or self._finish
            delta = choice.delta or _Delta()
            for call in delta.tool_calls or ():
                known, spoken = self._calls.setdefault(call.index, ["", ""]), call.function or _CallPart()
                known[0] += spoken.name or ""
                known[1] += spoken.arguments or ""
            text, thinking = delta.content or choice.text or "", delta.reasoning_content or ""
            if self._is_whole:
                self._texts.append(text)
                self._thoughts.append(thinking)
            elif text or thinking:
                yield self._message(text, thinking, {}) | {"done": False}

    def _message(self, text: str, thinking: str, more: dict[str, Any]) -> dict[str, Any]:
        head: dict[str, Any] = {"model": self._model, "created_at": now()}
        thought = {"thinking": thinking} if thinking else {}
        if self._is_chat:
            return head | {"message": {"role": "assistant", "content": text, **thought, **more}}
        return head | {"response": text, **thought}

    def _count(self, usage: _Usage, timings: _Timings) -> None:
        """Keep token counts and nanoseconds, as far as they are reported."""
        for ours, count in (("prompt_eval_count", usage.prompt_tokens), ("eval_count", usage.completion_tokens)):
            if count is not None:
                self._counted[ours] = count
        if timings.prompt_ms is not None and timings.predicted_ms is not None:
            prompt, output = (int(ms * _NS_PER_MS) for ms in (timings.prompt_ms, timings.predicted_ms))
            took = {"total_duration": prompt + output, "load_duration": 0}
            self._counted |= took | {"prompt_eval_duration": prompt, "eval_duration": output}


def model_entry(name: str, unit: RouteTarget, created: int) -> dict[str, Any]:
    """A model of `/api/tags` and `/api/ps`. The digest is of its name and size, not of its file."""
    digest = hashlib.sha256(f"{unit.model} {unit.size_bytes}".encode()).hexdigest()
    modified = datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")
    entry = {"name": name, "model": name, "modified_at": modified, "size": unit.size_bytes, "digest": digest}
    return entry | {"details": details(unit), "context_length": n_ctx(unit)}


def details(unit: RouteTarget) -> dict[str, Any]:
    """The `details` of a model, as far as the routing table has them."""
    size = f"{unit.n_params / 1e9:.1f}B" if unit.n_params >= 1e9 else f"{unit.n_params / 1e6:.0f}M"
    known = {"parent_model": "", "format": "gguf", "family": "", "families": []}
    return known | {"parameter_size": size if unit.n_params else "", "quantization_level": ""}


def show_answer(unit: RouteTarget) -> dict[str, Any]:
    """The answer of `/api/show`. The architecture is called `launch`: clients look for keys that begin with it."""
    capabilities = ["embedding"] if unit.embedding else ["completion", "tools"]
    capabilities += ["vision"] if "image" in unit.modalities else []
    info = {
        "general.architecture": "launch",
        "general.parameter_count": unit.n_params,
        "launch.context_length": n_ctx(unit),
    }
    parameters = "\n".join(f"{name} {value}" for name, value in sorted(unit.request_defaults.items()))
    head = {"modelfile": "", "parameters": parameters, "template": "", "details": details(unit)}
    return head | {"model_info": info, "capabilities": capabilities}


def embeddings(body: bytes) -> tuple[list[list[float]], int]:
    """The vectors of an answer of `/v1/embeddings`, in the order of the texts, and the tokens. Raises HttpError."""
    found = _read(body, _Vectors)
    usage = found.usage or _Usage()
    return [vector.embedding for vector in sorted(found.data, key=lambda v: v.index)], usage.prompt_tokens or 0


def _read(data: bytes, kind: type[_Said]) -> _Said:
    """A server's answer as `kind`. Raises HttpError."""
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE:
        raise HttpError(502, "upstream_garbage", "the server's answer is none of OpenAI's API") from None


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a function call; {} where the model did not write an object."""
    try:
        return msgspec.json.decode(text or "{}", type=dict)
    except (msgspec.DecodeError, RecursionError):
        return {}


def now() -> str:
    """The present time as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
