"""What a build knows, and what the user adds by hand: `extra_args` and `env`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from launcher.base.environment import DEVICE_VARIABLES
from launcher.errors import Finding, Fix, fault
from launcher.ir.dialect import Dialect, Flag
from launcher.ir.plan import ServerPlan
from launcher.render.passed import HARMLESS, REFUSED, UNPRICED, by_flag
from launcher.render.spellings import TABLE, Meaning, expert_key

ON_OFF = frozenset({"on", "enabled", "true", "1", "off", "disabled", "false", "0", "auto", "-1"})
"""Values that `is_truthy`, `is_falsey` and `is_autoy` accept (llama.cpp common/arg.cpp)."""


def refused_value(flag: Flag, word: str, value: str) -> str | None:
    """Why `word value` is refused, by the choices that the help lists; None when it is not.

    Lists of bare numbers are examples, not choices. A flag whose help says comma-separated takes several.
    """
    if not flag.choices or value == flag.default or all(c.lstrip("-").isdigit() for c in flag.choices):
        return None
    if {"on", "off"} <= set(flag.choices) and value in ON_OFF:
        return None
    several = value.split(",") if "comma-separated" in flag.help else [value]
    wrong = [v for v in several if v not in flag.choices]
    return f"{word} takes {', '.join(flag.choices)}, not {wrong[0]!r}" if wrong else None


class Known(NamedTuple):
    """Spelling → flag; first spelling of each flag that the plan depends on → its meaning; environment name → flag."""

    flags: Mapping[str, Flag]
    owners: Mapping[str, Meaning]
    by_variable: Mapping[str, Flag]


@lru_cache(maxsize=16)
def known(dialect: Dialect) -> Known:
    """What `dialect` has."""
    index = dialect.index()
    owners = {
        index[name].names[0]: meaning
        for meaning in TABLE
        if not meaning.soft
        for name in meaning.owns
        if name in index and not index[name].removed  # a removed flag belongs to nobody
    }
    return Known(index, owners, {flag.env: flag for flag in index.values() if flag.env})


SECRET_FLAGS = {"--api-key": "--api-key-file", "--hf-token": None}
"""Flags whose value is a secret → the flag that reads it from a file."""
REFUSALS, UNKNOWN_PRICES = by_flag(REFUSED), by_flag(UNPRICED)
NOTHING_TO_PLAN = frozenset(by_flag(HARMLESS)) | {name for meaning in TABLE if meaning.soft for name in meaning.owns}
COMMON_KEYS = ("general.", "tokenizer.", "adapter.", "quantize.", "split.", "clip.")
"""Beginnings of metadata keys that every architecture may have."""


def walk(words: tuple[str, ...], index: Mapping[str, Flag]) -> Iterator[tuple[int, str, Flag | None, tuple[str, ...]]]:
    """Position, word, its flag (None where a flag should stand and none does) and the values that follow."""
    position = 0
    while position < len(words):
        word = words[position]
        flag = index.get(word)
        arity = flag.takes(word) if flag is not None else 0
        yield position, word, flag, words[position + 1 : position + 1 + arity]
        position += 1 + arity


def check_extra_args(server: ServerPlan, dialect: Dialect) -> list[Finding]:
    """Every word of `extra_args` against the dialect, and against the flags that the compiler decides."""
    index, owners, _ = known(dialect)
    extra_args = server.config.extra_args
    findings: list[Finding] = []
    for position, word, flag, values in walk(extra_args, index):
        key = f"servers.{server.name}.extra_args.{position}"
        if flag is None:
            findings.append(_unknown(key, word, dialect, index, _owner_before(extra_args, position, index)))
            continue
        if flag.removed:
            message = f"llama-server {dialect.name} has removed {word}"
            findings.append(fault("engine/unknown-flag", key, message, flag.help))
        elif flag.deprecated:
            message = f"{word} is deprecated in llama-server {dialect.name}"
            findings.append(fault("engine/deprecated-flag", key, message, flag.deprecated, severity="warning"))
        findings += _check_values(key, word, flag, values)
        if secret := next((name for name in SECRET_FLAGS if name in flag.names), None):
            findings.append(_secret(key, secret))
        if (meaning := owners.get(flag.names[0])) is not None:
            findings.append(_conflict(key, word, meaning, _without(server, position, values)))
        elif "--override-kv" in flag.names and server.config.experts_used and expert_key(server) in "".join(values):
            meaning = next(m for m in TABLE if m.key == "experts_used")
            findings.append(_conflict(key, word, meaning, _without(server, position, values)))
        elif "--override-kv" in flag.names:
            findings += _unread_keys(key, values, server)
        elif not flag.removed:
            findings += _unplanned(key, word, flag, dialect, _without(server, position, values))
    return findings


def _unplanned(key: str, word: str, flag: Flag, dialect: Dialect, remove: str) -> Iterator[Finding]:
    """A flag of the build that the plan does not know to be harmless."""
    names = {*flag.names, *flag.negations}
    fix = Fix(override=remove)
    if (why := next((reason for name, reason in REFUSALS.items() if name in names), None)) is not None:
        yield fault("engine/flag-refused", key, f"a server of a fleet cannot have {word}: {why}", fixes=(fix,))
    elif (why := next((reason for name, reason in UNKNOWN_PRICES.items() if name in names), None)) is not None:
        message = f"the plan does not count what {word} does: {why}"
        yield fault("engine/unplanned-flag", key, message, fixes=(fix,), severity="warning")
    elif not names & NOTHING_TO_PLAN:
        message = f"nobody knows what {word} of llama-server {dialect.name} does to the plan"
        yield fault("engine/unplanned-flag", key, message, flag.help, fixes=(fix,), severity="warning")


def check_architecture(server: ServerPlan, dialect: Dialect) -> Iterator[Finding]:
    """Whether the build loads the architectures of the server's model and draft, if its list is known."""
    draft = server.draft.architecture.arch if server.draft else None
    for field, arch in (("model", server.model.architecture.arch), ("draft.model", draft)):
        if arch is None or not dialect.architectures or arch in dialect.architectures:
            continue
        message = f"llama-server {dialect.name} does not know models of architecture {arch}"
        notes = ("a newer build may: engines.NAME for it, and servers.NAME.engine",)
        yield fault("engine/unknown-architecture", f"servers.{server.name}.{field}", message, *notes)


def _unread_keys(key: str, values: tuple[str, ...], server: ServerPlan) -> Iterator[Finding]:
    """Metadata keys that this model does not have: the server accepts them silently and never reads them."""
    arch = server.model.architecture.arch
    for value in ",".join(values).split(","):
        name = value.partition("=")[0]
        if name and not name.startswith((f"{arch}.", *COMMON_KEYS)):
            message = f"no {arch} model has {name}: the server would accept it and never read it"
            yield fault("engine/override-key", key, message, f"its keys begin with {arch}.", severity="warning")


ENGINE_VARIABLES = ("LLAMA_ARG_", "LLAMA_API_KEY")
"""Beginnings of environment names that only llama-server reads, as flags; without such a flag nothing reads them."""


def check_environment(env: Mapping[str, str], key: str, dialect: Dialect) -> Iterator[Finding]:
    """Variables of an `env` at `key` that llama-server reads as flags: held against the dialect as flags are."""
    _, owners, by_variable = known(dialect)
    for name, value in env.items():
        flag, at = by_variable.get(name), f"{key}.{name}"
        if flag is None:
            if name in DEVICE_VARIABLES:
                message = f"{name} gives other cards the names that the plan uses: say it with `devices`"
                yield fault("engine/device-variable", at, message, fixes=(Fix(override=f"~{at}"),))
            if name.startswith(ENGINE_VARIABLES):
                message = f"llama-server {dialect.name} reads no {name}: it would be without effect"
                yield fault("engine/unknown-flag", at, message, fixes=(Fix(override=f"~{at}"),))
            continue
        if flag.names[0] in owners:
            yield _conflict(at, name, owners[flag.names[0]], f"~{at}")
        elif flag.removed:
            message = f"llama-server {dialect.name} has removed {flag.names[0]}, which {name} sets"
            yield fault("engine/unknown-flag", at, message, flag.help)
        elif flag.arity and (reason := refused_value(flag, name, value)):
            yield fault("engine/bad-value", at, reason)
        if secret := next((known for known in SECRET_FLAGS if known in flag.names), None):
            yield _secret(at, secret)


def _owner_before(words: tuple[str, ...], position: int, index: Mapping[str, Flag]) -> str | None:
    """The switch before `position`, if the word there looks like a value meant for it (`--embedding false`)."""
    before = index.get(words[position - 1]) if position else None
    return words[position - 1] if before is not None and not words[position].startswith("-") else None


def _unknown(key: str, word: str, dialect: Dialect, index: Mapping[str, Flag], switch: str | None) -> Finding:
    if switch is not None:
        message = f"llama-server {dialect.name} refuses {word!r}: {switch} takes no value"
        return fault("engine/unknown-flag", key, message, "leave a switch out to turn it off")
    name, equals, _ = word.partition("=")
    if equals and name in index:
        message = f"llama-server {dialect.name} refuses {word!r}"
        return fault("engine/unknown-flag", key, message, "write flag and value as two items")
    import difflib  # noqa: PLC0415 # needed only to say what is wrong

    near = difflib.get_close_matches(word, index, n=1)
    notes = (f"did you mean {near[0]}?",) if near else ()
    return fault("engine/unknown-flag", key, f"llama-server {dialect.name} has no flag {word}", *notes)


def _check_values(key: str, word: str, flag: Flag, values: tuple[str, ...]) -> Iterator[Finding]:
    if len(values) < (takes := flag.takes(word)):
        yield fault("engine/bad-value", key, f"{word} takes {takes} value{'s' * (takes > 1)}, {len(values)} given")
    for value in values:
        if reason := refused_value(flag, word, value):
            yield fault("engine/bad-value", key, reason)


def _secret(key: str, flag: str) -> Finding:
    """The finding for a secret on a command line, where every user of the host can read it."""
    instead = SECRET_FLAGS[flag]
    notes = (f"put it into a file that only the server can read, and use {instead}",) if instead else ()
    return fault("engine/secret-in-argv", key, f"{flag} would show a secret in argv", *notes)


def _without(server: ServerPlan, position: int, values: tuple[str, ...]) -> str:
    """The override that takes the flag at `position`, its values and what was meant for one out of `extra_args`."""
    extra_args, end = server.config.extra_args, position + 1 + len(values)
    while end < len(extra_args) and not extra_args[end].startswith("-"):
        end += 1
    rest = (*extra_args[:position], *extra_args[end:])
    words = ",".join("'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'" for word in rest)
    return f"servers.{server.name}.extra_args=[{words}]"


def _conflict(key: str, word: str, meaning: Meaning, remove: str) -> Finding:
    """The finding for a flag that the compiler decides, with the config key that says it and how to take it away."""
    server = ".".join(key.split(".")[:2]) if key.startswith("servers.") else "servers.NAME"
    if not meaning.key:
        message, effect = f"{word} is decided by the compiler; the plan depends on it", "leaves it to the compiler"
    else:
        message = f"{word} is decided by {server}.{meaning.key}: the plan would not know of a second say"
        effect = f"leaves it to {server}.{meaning.key}"
    return fault("engine/flag-conflict", key, message, fixes=(Fix(override=remove, effect=effect),))
