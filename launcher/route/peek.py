"""The model that a request names, read without decoding the rest of its body. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qs

import msgspec

from launcher.route.problem import HttpError


class _Named:
    """A type unknown to msgspec, which shows its decoding hook each value that is to become one."""

    __slots__ = ()


_NAMED = _Named()


class _Body(msgspec.Struct, frozen=True, gc=False):
    """A request whose `model` is read, every time the key occurs and however it is escaped; the rest is skipped."""

    model: _Named = _NAMED


class _TypedBody(msgspec.Struct, frozen=True, gc=False):
    """A request whose `model` is a name."""

    model: str | None = None


_seen: list[object] = []
"""The values of `model` that the decoder came upon. For one thread."""


def _see(_type: type, value: object) -> _Named:
    _seen.append(value)
    return _NAMED


_DECODE = msgspec.json.Decoder(_Body, dec_hook=_see).decode
_DECODE_TYPED = msgspec.json.Decoder(_TypedBody).decode
BOM = b"\xef\xbb\xbf"
"""Some editors write it before UTF-8 text; llama-server's parser skips it."""
_SMALL_BYTES = 1 << 20
"""`_Body`'s decoder builds a `model` that is no string: in a bigger body `_TypedBody`'s refuses it unbuilt."""
_JSON_NAMES = {bool: "a boolean", int: "a number", float: "a number", list: "an array", dict: "an object"}
_PARAMETER = re.compile(rb';\s*([\w*-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;\s]*)')
_DISPOSITION = re.compile(rb"^content-disposition\s*:\s*form-data\s*(.*)$", re.IGNORECASE | re.MULTILINE)
_OPAQUE = (b"application/octet-stream", b"audio/", b"image/", b"video/", b"text/plain")
_OBJECT = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{")
"""What llama-server reads as JSON, whatever its content type says (a page's `fetch` says text/plain)."""


_MOST_PARTS = 1024
"""Parts of a form: the few fields of a transcription, and some to spare."""
_MOST_HEAD_BYTES = 16 * 1024
"""Of a part's head."""


def peek_json(body: bytes) -> str | None:
    """The model that a JSON object names; other values are skipped. Raises HttpError 400 like `peek`.

    An array (`/lora-adapters`) names none.
    """
    _seen.clear()
    body = body.removeprefix(BOM)
    try:
        if len(body) > _SMALL_BYTES:
            _DECODE_TYPED(body)
        _DECODE(body)
    except msgspec.ValidationError as error:
        if "$.model" in str(error):
            raise _no_name(str(error)) from None
        if body.lstrip()[:1] != b"[":
            raise HttpError(400, "invalid_json", f"the body must be a JSON object: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HttpError(400, "invalid_json", f"the body is not JSON: {error}") from None
    except RecursionError:
        raise HttpError(400, "invalid_json", "the body is nested too deeply") from None
    if not _seen:
        return None
    model = _seen.pop()
    if _seen:
        raise _two_models()
    if model is not None and not isinstance(model, str):
        raise _no_name(f"it is {_JSON_NAMES[type(model)]}")
    return model


def peek(body: bytes, content_type: bytes, query: bytes, header: bytes | None) -> str | None:
    """The model that a request names: in its JSON or form body, else `?model=`, else `x-model`; "" counts as none.

    Raises HttpError 400 for a body that is no JSON object, names two models, or names one that is no string.
    """
    found = _peek_body(body, content_type) or (query_model(query) if query else None)
    if not found and header:
        return header.decode("latin-1").strip()
    return found or None


def query_model(query: bytes) -> str | None:
    """`model` of a query string. Raises HttpError 400 if it is given twice."""
    values = parse_qs(query.decode("latin-1"), encoding="utf-8", errors="replace").get("model")
    if values is None:
        return None
    if len(values) > 1:
        raise _two_models()
    return values[0]


def _peek_body(body: bytes, content_type: bytes) -> str | None:
    """Read `body` by its content type; without one it is JSON, as llama-server reads it."""
    if not body:
        return None
    kind = content_type.lower()
    if kind.startswith(b"multipart/form-data"):
        return peek_multipart(body, content_type)
    if kind.startswith(_OPAQUE) and not _OBJECT.match(body):
        return None
    return peek_json(body)


def peek_multipart(body: bytes, content_type: bytes) -> str | None:
    """`model` of a form; file contents are not looked at."""
    model: str | None = None
    for field, start, end in _fields(body, _delimiter(body, content_type)):
        if field == b"model":
            if model is not None:
                raise _two_models()
            model = body[start:end].decode("utf-8", "replace")
    return model


def model_in_form(body: bytes, content_type: bytes, model: bytes) -> bytes:
    """The form with `model` as its model, added or replaced. Raises HttpError 400."""
    delimiter = _delimiter(body, content_type)
    for field, start, end in _fields(body, delimiter):
        if field == b"model":
            return b"".join((memoryview(body)[:start], model, memoryview(body)[end:]))
    part = b'%b\r\ncontent-disposition: form-data; name="model"\r\n\r\n%b\r\n' % (delimiter, model)
    at = body.index(delimiter)
    return b"".join((memoryview(body)[:at], part, memoryview(body)[at:]))


def _delimiter(body: bytes, content_type: bytes) -> bytes:
    """The delimiter of a form's parts. Raises HttpError 400."""
    boundary = dict(_parameters(content_type)).get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:
        raise HttpError(400, "invalid_form", "multipart/form-data without a usable boundary")
    delimiter = b"--" + boundary
    if not body.startswith(delimiter) and body.find(b"\r\n" + delimiter) < 0:
        raise HttpError(400, "invalid_form", "the form's boundary does not occur in its body")
    return delimiter


def _fields(body: bytes, delimiter: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each part's name, and where its value begins and ends (empty for a file). Raises HttpError 400."""
    start = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter)
    for _ in range(_MOST_PARTS):
        head_start = body.index(delimiter, start) + len(delimiter)
        end = body.find(b"\r\n" + delimiter, head_start)
        if end < 0:
            return
        yield _part(body, head_start, end)
        start = end + 2
    raise HttpError(400, "invalid_form", f"a form has {_MOST_PARTS} parts at most")


def _part(body: bytes, start: int, end: int) -> tuple[bytes, int, int]:
    """Name of the form part in body[start:end], and where its value stands; a file's value is left out."""
    head_end = body.find(b"\r\n\r\n", start, min(end, start + _MOST_HEAD_BYTES))
    if head_end < 0 and end - start > _MOST_HEAD_BYTES:
        raise HttpError(400, "invalid_form", f"a part of the form has no head within {_MOST_HEAD_BYTES} bytes")
    if head_end < 0:
        return b"", end, end
    disposition = _DISPOSITION.search(body[start:head_end].replace(b"\r\n", b"\n"))
    if disposition is None:
        return b"", end, end
    parameters = dict(_parameters(disposition[1]))
    name = parameters.get(b"name", b"")
    return (name, end, end) if b"filename" in parameters else (name, head_end + 4, end)


def _parameters(value: bytes) -> list[tuple[bytes, bytes]]:
    """`; key=value` parameters of a header: keys in lower case, values unquoted."""
    return [
        (key.lower(), re.sub(rb"\\(.)", rb"\1", text[1:-1]) if text.startswith(b'"') else text)
        for key, text in _PARAMETER.findall(value)
    ]


def _no_name(why: str) -> HttpError:
    return HttpError(400, "invalid_model", f"model must be a string: {why}", param="model")


def _two_models() -> HttpError:
    """The error for a request that could be routed two ways."""
    return HttpError(400, "duplicate_model", "the request names a model more than once", param="model")
