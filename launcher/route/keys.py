"""API keys: the key file, and what each key allows. I/O: the key file.

One key per line, as it is or as its digest, `sha256:HEX`; then, separated by blanks: `name=`, `scopes=` (infer, admin;
default: infer), `models=` (names that it may ask for; default: all), and its limits `requests_per_minute=`,
`tokens_per_minute=`, `in_flight=`; `priority=` (-100 to 100, default 0): where requests wait for a slot, those with a
higher one go first. `#` begins a comment line.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterable
from pathlib import Path

import msgspec

from launcher.base.regular import read_regular
from launcher.errors import HostError, fault
from launcher.route.problem import HttpError
from launcher.route.rate_limits import Limits

_KEY = "runtime.front.api_key_file"
SCOPES = frozenset({"infer", "admin"})
_HASHED = re.compile(r"sha256:([0-9a-f]{64})", re.IGNORECASE)
_SHORTEST = 8
"""Least characters of a key: a shorter one can be guessed, or is a typing error."""
_LIMITS = Limits.__struct_fields__
_COUNT = re.compile(r"[1-9][0-9]{0,9}")
_PRIORITY = re.compile(r"-?[0-9]{1,3}")
MOST_PRIORITY = 100
_PLAIN = re.compile(r"[\x21-\x7e]+")


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What the bearer of a key may do. `models` None: all models."""

    name: str = ""
    scopes: frozenset[str] = SCOPES
    models: frozenset[str] | None = None
    limits: Limits | None = None
    priority: int = 0
    """Where requests wait for a slot, those with a higher priority go first."""
    digest: bytes = b""
    """Digest of the key, under which its usage is counted; b"" for a key without limits."""

    def check_scope(self, scope: str) -> None:
        """Raise HttpError 403 if the key lacks a scope."""
        if scope not in self.scopes:
            raise HttpError(403, "scope_missing", f"this API key has no scope {scope!r}")

    def may_ask(self, asked: str, server: str) -> bool:
        """Whether a request for the name `asked`, answered by `server`, is within the key's models."""
        return self.models is None or asked in self.models or server in self.models

    def check_model(self, asked: str, server: str) -> None:
        """HttpError 403 where it may not ask for the name `asked`, answered by `server`."""
        if not self.may_ask(asked, server):
            raise HttpError(403, "model_not_allowed", f"this API key may not ask for {asked!r}")


ALLOW_ALL = Grant()
"""What callers may do where no keys are configured."""
ALLOW_NONE = Grant(scopes=frozenset(), models=frozenset())
"""What callers without a key may do."""


class Keys:
    """The keys of one file: SHA-256 digests and what they grant."""

    def __init__(self, grants: Iterable[tuple[bytes, Grant]]) -> None:
        self._grants = dict(grants)

    def grant(self, presented: bytes) -> Grant | None:
        """What a presented key grants; None for an unknown one.

        The key is looked up by its digest, which cannot be brought close to another one on purpose: the time of the
        lookup tells nothing about the keys.
        """
        return self._grants.get(hashlib.sha256(presented).digest())


def read_keys(api_key_file: str, *, may_be_empty: bool = False) -> Keys:
    """The keys in a file. Raises HostError; its findings name lines and never repeat a key."""
    try:
        mode = Path(api_key_file).stat().st_mode
        lines = read_regular(Path(api_key_file)).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        message = f"the API key file {api_key_file} cannot be read: {reason}"
        raise HostError.of("route/key-file-unreadable", message, key=_KEY) from None
    if mode & stat.S_IWOTH:
        message = f"anybody may write the API key file {api_key_file}: `chmod go-w {api_key_file}`"
        raise HostError.of("route/key-file-open", message, key=_KEY)
    written = [
        (n, line.split()) for n, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")
    ]
    parsed = [(n, _parse(words)) for n, words in written]
    wrong = [f"{api_key_file}, line {n}: {result}" for n, result in parsed if isinstance(result, str)]
    if wrong:
        raise HostError(fault("route/key-file-line", _KEY, message) for message in wrong)
    if not parsed and not may_be_empty:
        raise HostError.of("route/key-file-empty", f"the API key file {api_key_file} holds no key", key=_KEY)
    return Keys(result for _, result in parsed if not isinstance(result, str))


def _parse(words: list[str]) -> tuple[bytes, Grant] | str:
    """Digest and grant of one line, or what is wrong with it."""
    hashed = _HASHED.fullmatch(words[0])
    if hashed is None and words[0].lower().startswith("sha256:"):
        return "sha256: is followed by 64 hexadecimal digits"
    digest = bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(words[0].encode()).digest()
    options = dict(word.partition("=")[::2] for word in words[1:])
    unknown = options.keys() - {"name", "scopes", "models", "priority", *_LIMITS}
    if unknown or len(options) != len(words) - 1:
        return f"after the key stand name=, scopes=, models=, priority=, {'=, '.join(_LIMITS)}=, each once"
    if not all(_COUNT.fullmatch(options[name]) for name in _LIMITS if name in options):
        return f"{', '.join(_LIMITS)} are whole numbers from 1"
    written = options.get("priority", "0")
    priority = int(written) if _PRIORITY.fullmatch(written) else MOST_PRIORITY + 1
    if abs(priority) > MOST_PRIORITY:
        return f"priority is a whole number from -{MOST_PRIORITY} to {MOST_PRIORITY}"
    scopes = frozenset(options.get("scopes", "infer").split(","))
    if scopes - SCOPES:
        return f"scopes are {', '.join(sorted(SCOPES))}"
    if hashed is None and not _PLAIN.fullmatch(words[0]):
        return "a key has printable ASCII characters only: no header could carry others"
    if hashed is None and len(words[0]) < _SHORTEST:
        return f"a key has {_SHORTEST} characters or more"
    models = frozenset(options["models"].split(",")) if "models" in options else None
    spend = {name: int(options[name]) for name in _LIMITS if name in options}
    grant = Grant(name=options.get("name", ""), scopes=scopes, models=models, priority=priority)
    limited = msgspec.structs.replace(grant, limits=Limits(**spend), digest=digest)
    return digest, limited if spend else grant
