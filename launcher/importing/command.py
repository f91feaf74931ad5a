"""Translate one llama-server's command line into the fields of a server. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from launcher.base.addresses import socket_path_fault
from launcher.base.environment import DEVICE_VARIABLES
from launcher.importing.flags import (
    DOWNLOAD_FLAGS,
    FIELDS,
    IGNORED_FLAGS,
    OWN_FLAGS,
    REPEATED,
    SECRETS,
    SWITCHES,
    WITHOUT_EQUAL,
)
from launcher.importing.result import Flags, Imported

Lose = Callable[..., None]
"""`Imported.add_loss`, with its `where` given."""
AUTO_SLOTS = 4
"""Slots that llama-server uses without `--parallel`, all in one K/V cache."""

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_SHORT = re.compile(r"-(?!-)[ditPq]*(?:([A-Za-z])=?(.*))?", re.DOTALL)
"""Short options of `docker run` in one word: those without a value, then one with it, or with the next word as such."""
_CONTAINER_SWITCHES = frozenset(
    {
        *("--rm", "--init", "--detach", "--interactive", "--tty", "--privileged", "--read-only", "--publish-all"),
        *("--quiet", "--no-healthcheck", "--oom-kill-disable", "--sig-proxy", "--disable-content-trust", "--replace"),
    }
)
_SERVER_IMAGE = re.compile(r"(?:^|/)llama\.cpp(?::|@|$)|llama-server|llamacpp-server")
_WRAPPERS = frozenset(
    {"exec", "nohup", "sudo", "env", "nice", "ionice", "time", "setsid", "timeout", "screen", "tmux", "stdbuf", "chrt"}
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def server_of(
    words: Sequence[str], where: str, flags: Flags, into: Imported, env: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """The fields of the llama-server that `words` start; None, with a finding, if they start something else.

    Wrappers (`env A=b`, `numactl …`, `docker run …`) are taken off; what they do without an equivalent here is a
    finding.
    """
    add_loss = partial(into.add_loss, where)
    words, variables = _unwrapped(list(words), add_loss)
    variables = {**(env or {}), **variables}
    mounts: dict[str, str] = {}
    if words and posixpath.basename(words[0]) in {"docker", "podman"}:
        contained = _container(words, add_loss)
        if contained is None:
            return None
        words, mounts, inside = contained
        variables |= inside
    elif not words or not _is_server(words[0]):
        program = posixpath.basename(words[0]) if words else "nothing"
        add_loss(f"runs {program}, no llama-server", "it may run beside as a `service`, without swapping")
        return None
    else:
        into.programs.append(words[0])
        words = words[1:]
    arguments = _from_environment(variables)
    fields = fields_of([*arguments, *words], flags, add_loss)
    for field in {"file", "projector"} & fields.keys():
        fields[field] = _outside(fields[field], mounts)
    if "n_ctx" in fields and "slots" not in fields and not fields.get("embedding"):
        fields |= {"slots": AUTO_SLOTS, "kv_unified": True}  # as llama-server has it: each may use the whole context
    for name in sorted(variables.keys() & DEVICE_VARIABLES):
        value = variables.pop(name)
        if value.strip() in {"", "-1"}:
            fields.setdefault("devices", [])
        else:  # the plan chooses cards by name: no variable may count them anew
            note = "write `devices: [cuda0]`, as `launch plan` calls the card; without it every card is used"
            add_loss(f"{name}={value}: a server's cards are chosen by their names", note)
    if variables:
        fields["env"] = variables
    return fields


def starts_server(words: Sequence[str]) -> bool:
    """Whether a llama-server is among `words`, or they run its image."""
    names = [posixpath.basename(word) for word in words]
    runs = "run" in names and not {"docker", "podman"}.isdisjoint(names)
    return any(name.startswith("llama-server") for name in names) or (runs and any(map(_SERVER_IMAGE.search, words)))


def _is_server(program: str) -> bool:
    name = posixpath.basename(program)
    return name.startswith("llama-server") or name in {"server", "llama.cpp-server"}


def _unwrapped(words: list[str], lose: Lose) -> tuple[list[str], dict[str, str]]:
    """The words without assignments and wrappers before the program, and the environment that they set."""
    variables: dict[str, str] = {}
    while words:
        if _ASSIGNMENT.fullmatch(words[0]):
            name, _, value = words.pop(0).partition("=")
            variables[name] = value
        elif posixpath.basename(words[0]) in _WRAPPERS:
            words.pop(0)
            # its options, and their values, are whatever stands before something that is known
            while words and not _is_known(words[0]) and any(map(_is_known, words[1:])):
                words.pop(0)
        elif posixpath.basename(words[0]) in {"numactl", "taskset"}:
            start = next((i for i, word in enumerate(words) if i and _is_server(word)), len(words))
            note = "say it as `numa: {policy: …, nodes: […]}` or `cpus: 0-7`"
            lose(f"`{' '.join(words[:start])}` is not translated", note)
            words = words[start:]
        else:
            break
    return words, variables


def _is_known(word: str) -> bool:
    """Whether a word after a wrapper is the program it runs, another wrapper, or an assignment."""
    name = posixpath.basename(word)
    known = name in _WRAPPERS | {"numactl", "taskset", "docker", "podman"} or name.startswith("llama-server")
    return known or bool(_ASSIGNMENT.fullmatch(word))


def _container(words: list[str], lose: Lose) -> tuple[list[str], dict[str, str], dict[str, str]] | None:
    """Arguments, mounts (inside → outside) and environment that `docker run` of llama.cpp's image gives the server.

    None, with a finding, for another image.
    """
    mounts: dict[str, str] = {}
    variables: dict[str, str] = {}
    rest = [word for word in words[1:] if word not in {"run", "container"}]
    while rest and rest[0].startswith("-"):
        option, _, value = rest.pop(0).partition("=")
        if short := _SHORT.fullmatch(f"{option}={value}" if value else option):
            option, value = short[1] or "", short[2] or ""
        if not option or option in _CONTAINER_SWITCHES:
            continue
        if not value:
            value = rest.pop(0) if rest else ""
        if option in {"v", "--volume"}:
            outside, _, inside = value.partition(":")
            mounts[inside.partition(":")[0]] = outside
        elif option in {"e", "--env"} and "=" in value:
            name, _, text = value.partition("=")
            variables[name] = text
        elif option in {"e", "--env"}:
            lose(f"the variable {value} is passed on from a shell", "write its value as `env` of the server")
    image = rest.pop(0) if rest else ""
    if not _SERVER_IMAGE.search(image):
        lose(f"runs the image {image or '?'}, which is not llama.cpp's server")
        return None
    lose(f"runs in the container {image}; here it is a process", "llama-server itself must be on this machine")
    return rest, mounts, variables


def _outside(path: str, mounts: Mapping[str, str]) -> str:
    """The path on the host of a path inside a container."""
    for inside, outside in sorted(mounts.items(), key=lambda mount: -len(mount[0])):
        if path == inside or path.startswith(f"{inside.rstrip('/')}/"):
            return outside.rstrip("/") + path[len(inside.rstrip("/")) :]
    return path


def flag_of(variable: str) -> str:
    """The flag that `LLAMA_ARG_…` stands for."""
    return "--" + variable.removeprefix("LLAMA_ARG_").lower().replace("_", "-")


def _from_environment(variables: dict[str, str]) -> list[str]:
    """The `LLAMA_ARG_…` in `variables`, which are removed there, as flags."""
    given = {flag_of(name): variables.pop(name) for name in [n for n in variables if n.startswith("LLAMA_ARG_")]}
    return [word for flag, value in given.items() for word in ([flag] if flag in SWITCHES else [flag, value])]


def fields_of(words: Sequence[str], flags: Flags, lose: Lose) -> dict[str, Any]:
    """Fields of a server from its arguments. Flags without a field go to `extra_args`; unknown ones are findings."""
    fields: dict[str, Any] = {}
    extra: list[str] = []
    at = 0
    while at < len(words):
        word, equals, given = words[at].partition("=") if words[at].startswith("--") else (words[at], "", "")
        at += 1
        if not word.startswith("-"):
            lose(f"{word!r} belongs to no flag")
            continue
        count = 0 if equals else _arity(word, words[at:], flags)
        values = [given] if equals else list(words[at : at + count])
        at += count
        if word in SECRETS:
            lose(f"{word} is a secret and not translated", "runtime.front.api_key_file names a file with keys")
        elif word in DOWNLOAD_FLAGS:
            lose(f"{word} {' '.join(values)}: models are not downloaded at start", _hub_note(values))
        elif word in FIELDS:
            _put(fields, word, values, lose)
        elif word == "--host" and values:
            _host(fields, values[0], lose)
        elif word in OWN_FLAGS or word in IGNORED_FLAGS:
            continue
        elif word in WITHOUT_EQUAL:
            lose(f"{' '.join((word, *values))} is not translated", WITHOUT_EQUAL[word])
        elif word in flags:
            extra += [word, *values]
        else:
            lose(f"no build that is known has the flag {word}")
    _combine(fields, lose)
    return fields | ({"extra_args": extra} if extra else {})


def _arity(word: str, following: Sequence[str], flags: Flags) -> int:
    """How many of the `following` words are values of the flag."""
    if word in {"-fa", "--flash-attn"}:  # a switch once, with a value since
        return int(bool(following) and following[0] in {"on", "off", "auto", "1", "0", "true", "false"})
    if word in SWITCHES:
        return 0
    if word in flags:
        return min(0 if word in flags[word].negations else flags[word].arity, len(following))
    if word in FIELDS or word in SECRETS or word in DOWNLOAD_FLAGS:
        return min(1, len(following))
    return int(bool(following) and (not following[0].startswith("-") or bool(_NUMBER.fullmatch(following[0]))))


def _put(fields: dict[str, Any], word: str, values: Sequence[str], lose: Lose) -> None:
    field, convert = FIELDS[word]
    text = values[0] if values else ""
    try:
        value = convert(text)
    except ValueError:
        lose(f"{word} {text!r} is not a value that it can have")
        return
    outer, _, inner = field.partition(".")
    if field in REPEATED:
        fields[field] = [*fields.get(field, []), *value]
    elif value is not None:
        fields |= {outer: {**fields.get(outer, {}), inner: value} if inner else value}


def _host(fields: dict[str, Any], host: str, lose: Lose) -> None:
    """Keep a unix socket. Another address is a finding, unless it is loopback: others reach only the front."""
    if socket_path_fault(host) is None:
        fields["host"] = host
    elif host not in {"127.0.0.1", "localhost", "::1"}:
        note = f"to let others in write runtime: {{front: {{host: {host}}}}} and an api_key_file"
        lose(f"--host {host}: servers listen on this machine alone, the front is what others reach", note)


def _combine(fields: dict[str, Any], lose: Lose) -> None:
    for kind in fields.pop("spec_type", ()):
        _speculate(fields, kind, lose)
    _name_main_gpu(fields, lose)
    if "host" in fields:
        fields.pop("port", None)  # which the server does not look at then
    locked, unmapped = fields.pop("mlock", False), fields.pop("no_mmap", False)
    if locked or unmapped:
        fields["load_mode"] = "mlock" if locked and unmapped else "mmap+mlock" if locked else "none"
    if fields.pop("rerank", False):
        fields |= {"embedding": True, "pooling": "rank"}
    draft = fields.get("draft")
    if isinstance(draft, dict) and "file" not in draft and draft.get("kind") != "mtp":
        del fields["draft"]
    if "kind" not in fields.get("ngram", {"kind": ""}):
        del fields["ngram"]


def _speculate(fields: dict[str, Any], kind: str, lose: Lose) -> None:
    """Translate one value of `--spec-type`: n-grams, or how a draft was trained."""
    family, _, name = kind.partition("-")
    if family == "ngram":
        fields["ngram"] = {**fields.get("ngram", {}), "kind": name}
    elif family == "draft":
        fields["draft"] = {**fields.get("draft", {}), "kind": name}
    elif kind != "none":
        lose(f"--spec-type {kind} is not a value that it can have")


def _name_main_gpu(fields: dict[str, Any], lose: Lose) -> None:
    """Replace the main GPU's number by its name, if the devices say it; split by layers has no main GPU."""
    number = fields.pop("main_gpu", None)
    if number is None or fields.get("split_mode", "layer") == "layer":
        return
    devices = fields.get("devices", [])
    if 0 <= number < len(devices):
        fields["main_gpu"] = devices[number]
    else:
        note = f"write `main_gpu: cuda{number}`, as `launch plan` calls the card"
        lose(f"--main-gpu {number}: a server's cards are chosen by their names", note)


def _hub_note(values: Sequence[str]) -> str:
    return f"launch add hf:{values[0]}" if values and "/" in values[0] and "://" not in values[0] else "launch add FILE"
