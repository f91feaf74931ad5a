"""The command line before Typer sees it, and completion of overrides. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence

_OVERRIDE = re.compile(r"(?:\+\+?|~)?[A-Za-z_][\w./@-]*=.*|[~+][A-Za-z_][\w./@-]*", re.DOTALL)
_FLAGS = frozenset({"--json", "--no-color", "--verbose", "-v"})
_MULTIRUN = frozenset({"-m", "--multirun"})
_WITH_VALUE = frozenset({"--config-dir", "--file", "-f"})


def is_override(word: str) -> bool:
    """Whether `word` is a Hydra override (`a=b`, `+a=b`, `~a`) and not a command."""
    return _OVERRIDE.fullmatch(word) is not None


def with_command(argv: Sequence[str], commands: Collection[str], *, fleet: bool = False) -> list[str]:
    """Move global options of `argv` after the command, and insert `up` if the first word is an override.

    `--detach hardware=dev` is `up --detach hardware=dev`; words that are neither stay for Typer to refuse. Options
    alone are `up`, too, if a file names the fleet: one that was found (`fleet`), or `-f FILE`.
    """
    words = list(argv)
    if words[:1] and words[0] in _MULTIRUN and not any(word in commands for word in words):
        words.insert(0, "plan")  # as Hydra writes it: `program -m a=1,2`
    leading: list[str] = []
    at = 0
    while at < len(words) and words[at].startswith("-"):
        word = words[at]
        if word in _WITH_VALUE and at + 1 < len(words):
            leading += words[at : at + 2]
            at += 2
        elif word in _FLAGS or word.partition("=")[0] in _WITH_VALUE or word in {"--detach", "--wait", "-d"}:
            leading.append(word)
            at += 1
        else:
            break
    rest = words[at:]
    if rest and rest[0] in commands:
        return [rest[0], *leading, *rest[1:]]
    if rest and is_override(rest[0]):
        later = [i for i, word in enumerate(rest) if word in commands]
        if len(later) == 1:
            # `launch profile=dev plan` can mean only one thing: a bare word is never an override
            return [rest[later[0]], *leading, *rest[: later[0]], *rest[later[0] + 1 :]]
        return ["up", *leading, *rest]
    if not rest and (fleet or any(word.partition("=")[0] in {"-f", "--file"} for word in leading)):
        return ["up", *leading]
    return [*leading, *rest]


def later_wins(earlier: Sequence[str], later: Sequence[str]) -> tuple[str, ...]:
    """Both lists of overrides as one; an earlier override is dropped if a later one has the same key."""
    again = {_key(word) for word in later}
    return (*(word for word in earlier if _key(word) not in again), *later)


def _key(override: str) -> str:
    """The key of an override: `a.b` of `+a.b=1`."""
    return override.partition("=")[0].lstrip("+~")


def complete_override(
    args: Sequence[str], incomplete: str, options: Mapping[str, Sequence[str]], keys: Mapping[str, str]
) -> list[str]:
    """Candidates for the override being typed.

    Bash splits `hardware=ep` into three words at `=` and wants only what follows it; zsh and fish give one word
    and want it whole. `options` are groups and keys with their choices, `keys` more dotted keys with a value each.
    """
    if incomplete == "=" and args:
        return list(options.get(args[-1].lstrip("+~"), ()))
    if len(args) >= 2 and args[-1] == "=":
        return [o for o in options.get(args[-2].lstrip("+~"), ()) if o.startswith(incomplete)]
    name, equals, value = incomplete.partition("=")
    if equals:
        return [f"{name}={o}" for o in options.get(name.lstrip("+~"), ()) if o.startswith(value)]
    prefix = incomplete[: len(incomplete) - len(incomplete.lstrip("+~"))]
    typed = incomplete[len(prefix) :]
    return [f"{prefix}{k}" for k in _keys(typed, {**{key: [value] for key, value in keys.items()}, **options})]


def _keys(typed: str, values: Mapping[str, Sequence[str]]) -> list[str]:
    """The keys that begin with `typed`, up to their next dot or `=`.

    A shell adds a space after an only candidate, which is not complete yet: then what may follow it is given.
    """
    ends = {key: key.find(".", len(typed)) + 1 for key in values if key.startswith(typed)}
    heads = sorted({key[:end] if end else f"{key}=" for key, end in ends.items()})
    if len(heads) != 1:
        return heads
    (head,) = heads
    if head.endswith("."):
        return _keys(head, values)
    known = values[head[:-1]]
    return [*([head] if len(known) < 2 else ()), *(head + value for value in known)]


_HYDRA = {
    **dict.fromkeys(("--cfg", "-c", "--info", "-i", "--package", "-p", "--resolve"), "launch config"),
    **dict.fromkeys(("-cn", "--config-name"), "launch up profile={}"),
    **dict.fromkeys(("-cp", "--config-path"), "launch up --config-dir {}"),
    **dict.fromkeys(("--run", "-r"), "launch up"),
    "--hydra-help": "launch --help",
}
"""What each of Hydra's options is here; `{}`: its value."""
_HYDRA_VALUED = frozenset({"--cfg", "-c", "--info", "-i", "--package", "-p"})


def hydra_words(words: Sequence[str]) -> list[str]:
    """`words` with Hydra's `-cd DIR` written as `--config-dir DIR`."""
    return ["--config-dir" if word == "-cd" else word for word in words]


def hydra_answer(words: Sequence[str], commands: Collection[str]) -> str | None:
    """The message for the first of Hydra's options in `words` that is none of ours; None: there is none.

    Only if no command is named: after one, `-c` and the like are the command's to judge.
    """
    values = {at + 1 for at, word in enumerate(words) if word in _HYDRA_VALUED}
    if any(word in commands for at, word in enumerate(words) if at not in values):
        return None
    for at, word in enumerate(words):
        option, _, value = word.partition("=")
        if option in _HYDRA:
            command = _HYDRA[option].format(value or next(iter(words[at + 1 :]), ""))
            rest = (w for i, w in enumerate(words) if i != at and is_override(w))
            other = ", or for a fleet file: launch up -f FILE" if option in {"-cn", "--config-name"} else ""
            return f"{option} is Hydra's. Here it is: {' '.join((command, *rest))}{other}"
    return None


COMMANDS_HERE = {
    "start": "launch up",
    "run": "launch add FILE.gguf and launch up; launch up --ask 'a question' asks it",
    "create": "launch init",
    "new": "launch init",
    "scan": "launch init",
    "list": "launch status for what runs, launch plan for what could",
    "ls": "launch status for what runs, launch plan for what could",
    "models": "launch status for what runs, launch plan for what could",
    "show": "launch inspect FILE.gguf, or launch plan",
    "stats": "launch status --watch",
    "download": "launch add hf:ORG/REPO[:QUANT]",
    "rm": "launch remove NAME for the file, launch stop NAME for what runs",
    "delete": "launch remove NAME",
    "kill": "launch stop NAME",
    "unload": "launch stop NAME",
    "load": "launch restart NAME; a warm server also starts when it is asked",
    "quit": "launch down",
    "exit": "launch down",
    "validate": "launch check",
    "test": "launch check",
    "doctor": "launch check",
    "build": "launch render",
    "version": "launch --version",
    "help": "launch --help",
    "convert": "launch import FILE",
    "migrate": "launch import FILE",
    "export": "deploy.targets=[llama_swap,router] and launch render",
    "deploy": "launch install",
}


def command_here(word: str) -> str | None:
    """The command here for a verb of another program, or for a model's file; None for an unknown word."""
    if word.endswith(".gguf"):
        return f"launch add {shlex.quote(word)}, then launch"
    return COMMANDS_HERE.get(word.lower())
