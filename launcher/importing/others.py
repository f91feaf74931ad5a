"""Translate router presets, shell scripts, systemd units and compose files. Pure."""

from __future__ import annotations

import configparser
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

from launcher.base.environment import DEVICE_VARIABLES
from launcher.importing.command import fields_of, flag_of, server_of, starts_server
from launcher.importing.flags import SWITCHES
from launcher.importing.result import Flags, Imported, listed

_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)(?::?-([^}]*))?\}|([A-Za-z_][A-Za-z0-9_]*))")
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_STARTS = re.compile(r"llama-server|llama\.cpp")
_SPECIFIER = re.compile(r"%([A-Za-z%])")
_OPERATOR = re.compile(r"[;&|]+")
_REDIRECTION = re.compile(r"(?:\d|&)?(?:>>?|<<?<?)&?")
_SHELL_WORDS = frozenset({"if", "then", "elif", "else", "fi", "while", "until", "do", "done", "{", "}", "(", ")", "!"})
_PRESET_OWN = frozenset({"load-on-startup", "stop-timeout", "version"})
_COMPOSE_KNOWN = frozenset(
    {"image", "command", "volumes", "environment", "ports", "restart", "deploy"}
    | {"container_name", "healthcheck", "ipc", "shm_size", "runtime"}
)


def from_preset(text: str, flags: Flags) -> Imported:
    """Translate llama-server's router preset (INI): `[*]` is for all models, each other section is one.

    Source: llama.cpp tools/server/README.md, "Using multiple models".
    """
    into = Imported()
    parser = configparser.ConfigParser(
        delimiters=("=",), interpolation=None, strict=False, default_section="\0", allow_no_value=True
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign] # flags differ by letter case
    try:
        plain = "\n".join(map(str.strip, text.split("\n")))  # an indent means nothing there
        parser.read_string(plain if plain.lstrip().startswith("[") else f"[\x01]\n{plain}")
    except configparser.Error as error:
        into.add_loss("the file", f"is no INI: {' '.join(str(error).split())}")
        return into
    common = dict(parser.items("*")) if parser.has_section("*") else {}
    for section in parser.sections():
        if section in {"*", "\x01"}:
            continue
        values = {key: value or "" for key, value in {**common, **dict(parser.items(section))}.items()}
        starts = values.get("load-on-startup", "").lower() in {"1", "true", "on", "yes"}
        settings = [_setting(key, value, flags) for key, value in values.items() if key not in _PRESET_OWN]
        fields = _of_router(fields_of([*chain(*settings)], flags, partial(into.add_loss, f"[{section}]")))
        if not fields.get("file"):
            into.add_loss(f"[{section}]", "names no model file, and is left out", f"launch add hf:{section}")
            continue
        into.add(section, {**fields, "tier": "hot" if starts else "warm"})
    return into


def _setting(key: str, value: str, flags: Flags) -> list[str]:
    if key.startswith("LLAMA_ARG_"):
        flag = flag_of(key)
    else:
        flag = f"{'-' if len(key) <= 3 and f'-{key}' in flags else '--'}{key}"
    if flag in SWITCHES or (flag in flags and flags[flag].arity == 0):
        return [flag] if value.lower() not in {"0", "false", "off", "no"} else []
    return [f"{flag}={value}"] if flag.startswith("--") else [flag, value]


def _of_router(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` without host and port, which the router or the container had assigned."""
    return {key: value for key, value in fields.items() if key not in {"host", "port"}}


def from_script(text: str, flags: Flags, env: Mapping[str, str]) -> Imported:
    """Translate a shell script: each line that starts a llama-server, with the variables set before it."""
    into = Imported()
    variables = dict(env)
    exported: dict[str, str] = {}
    for number, line in enumerate(re.sub(r"\\\n", " ", text).splitlines(), 1):
        if not _STARTS.search(line) and not _ASSIGNMENT.match(line.strip()):
            continue
        try:
            words = shlex.split(_spelled(line, variables), comments=True)
        except ValueError as error:
            into.add_loss(f"line {number}", f"is no shell line that can be read: {error}")
            continue
        for command in _commands(words):
            set_here = [_ASSIGNMENT.fullmatch(word) for word in command if word != "export"]
            if all(set_here):
                new = {m[1]: _spelled(m[2], variables) for m in set_here if m}
                variables |= new
                exported |= {n: v for n, v in new.items() if command[0] == "export" and _is_read(n)}
            elif starts_server(command):
                words = [_spelled(word, variables) for word in command]
                _started(words, f"line {number}", flags, into, env=exported)
    return into


def _is_read(name: str) -> bool:
    """Whether llama-server or its driver reads a variable that a script exports."""
    return name in DEVICE_VARIABLES or name.startswith("LLAMA_ARG_")


def _spelled(text: str, variables: Mapping[str, str]) -> str:
    """Expand `$NAME` and `${NAME:-default}`; an unknown one without a default stays as it is written."""
    return _VARIABLE.sub(lambda m: variables.get(m[1] or m[3], m[2] if m[2] is not None else m[0]), text)


def _commands(words: list[str]) -> Iterator[list[str]]:
    """The simple commands of a line, without the shell keywords before them and without redirections."""
    command: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not command:
            word = word.lstrip("(")
        if redirected := _REDIRECTION.match(word):
            at += redirected.end() == len(word)
            continue
        plain = word.rstrip(";&|")
        if plain.count(")") > plain.count("("):  # the end of a subshell
            plain = plain.rstrip(")")
        if plain and (command or plain not in _SHELL_WORDS):
            command.append(plain)
        if plain != word:
            yield command
            command = []
    yield command


def _started(
    words: list[str], where: str, flags: Flags, into: Imported, *, name: str = "", env: Mapping[str, str] | None = None
) -> None:
    """Add a server that is up from the start, named after `name`, its first alias, or its file."""
    fields = server_of(words, where, flags, into, env)
    if fields is None:
        return
    if not fields.get("file"):
        into.add_loss(where, "names no model file, and is left out")
        return
    if unknown := _VARIABLE.search(fields["file"]):
        note = "write its value in the file that was made"
        into.add_loss(where, f"{unknown[0]} in the model's path is set nowhere that is read", note)
    aliases = fields.pop("aliases", [])
    called = name or (aliases[0] if aliases else "") or _named_after(fields["file"])
    into.add(called, {**fields, "aliases": [a for a in aliases if a != called]})


def _words(text: str, where: str, into: Imported) -> list[str] | None:
    """The words of a command line; None, with a finding, if a quote is not closed."""
    try:
        return shlex.split(text)
    except ValueError as error:
        into.add_loss(where, f"`{text}` cannot be read: {error}")
        return None


def _named_after(path: str) -> str:
    stem = posixpath.basename(path).removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9]+", "-", re.sub(r"-\d{5}-of-\d{5}$", "", stem)).strip("-").lower() or "server"


def from_unit(text: str, flags: Flags, env: Mapping[str, str], *, name: str = "") -> Imported:
    """Translate a systemd service: `ExecStart=` and `Environment=`."""
    into = Imported()
    variables = dict(env)
    commands: list[str] = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        key, _, value = (part.strip() for part in line.partition("="))
        if key == "Environment":  # without a value it takes back those before it, as ExecStart= does
            set_here = {n: v for n, _, v in (w.partition("=") for w in _words(value, key, into) or ())}
            variables = variables | set_here if value else dict(env)
        elif key == "EnvironmentFile":
            into.add_loss("EnvironmentFile", f"{value} is not read: write what it sets as `env` of the server")
        elif key == "ExecStart":
            commands = [*commands, value.lstrip("@-:+!")] if value else []
        elif key in {"ExecStartPre", "ExecStartPost", "ExecStop"}:
            into.add_loss(key, f"`{value}` is not translated", "what is to be done once after start is a hook")
    set_here = {n: v for n, v in variables.items() if n not in env}
    for command in commands:
        if (words := _words(_spelled(command, variables), "ExecStart", into)) is not None:
            words = [_specified(word, env, into) for word in words]
            _started(words, "ExecStart", flags, into, name=name, env=set_here)
    if not commands:
        into.add_loss("the unit", "has no ExecStart")
    return into


def _specified(word: str, env: Mapping[str, str], into: Imported) -> str:
    """`word` with systemd's specifiers that have a value here: `%h` and `%%`."""
    known = {"%": "%", "h": env.get("HOME", "~")}

    def value(found: re.Match[str]) -> str:
        if found[1] not in known:
            into.add_loss("ExecStart", f"{found[0]} in `{word}` is known to systemd alone")
        return known.get(found[1], found[0])

    return _SPECIFIER.sub(value, word)


def from_compose(tree: Mapping[str, Any], flags: Flags, env: Mapping[str, str]) -> Imported:
    """Translate a compose file: each service whose image is llama.cpp's server."""
    into = Imported()
    services = tree.get("services")
    for name, service in services.items() if isinstance(services, dict) else ():
        where = f"services.{name}"
        if not isinstance(service, dict):
            continue
        words = ["docker", "run"]
        for volume in listed(service.get("volumes")):
            mount = f"{volume.get('source')}:{volume.get('target')}" if isinstance(volume, dict) else str(volume)
            words += ["-v", mount]
        given = service.get("environment")
        if isinstance(given, dict):  # a key without a value is passed on from the shell, as with `docker run -e`
            given = [key if value is None else f"{key}={_plain(value)}" for key, value in given.items()]
        words += [part for item in listed(given) for part in ("-e", str(item))]
        command = service.get("command")
        command = _words(command, where, into) if isinstance(command, str) else [str(word) for word in listed(command)]
        if command is None:
            continue
        words = [_spelled(word, env) for word in [*words, str(service.get("image", "")), *command]]
        before = set(into.servers)
        _started(words, where, flags, into, name=str(name))
        for server in into.servers.keys() - before:
            into.servers[server] = _of_router(into.servers[server])
            for key in sorted(service.keys() - _COMPOSE_KNOWN):
                into.add_loss(where, f"`{key}` is not translated")
    return into


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
