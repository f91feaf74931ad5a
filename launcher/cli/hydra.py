"""Hydra's own options, and the launch command that does what each asks. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from launcher.cli.arguments import is_override

_FLAGS = {
    "--resolve": "launch config",
    "--run": "launch up",
    "-r": "launch up",
    "--hydra-help": "launch --help",
}
_VALUED = dict.fromkeys(("--cfg", "-c", "--info", "-i", "--package", "-p"), "launch config")
_NAMES = ("-cn", "--config-name")
_PATHS = ("-cp", "--config-path")


def hydra_words(words: Sequence[str]) -> list[str]:
    """`words` with `-cd DIR` as `--config-dir DIR`, which is the same here."""
    return ["--config-dir" if word == "-cd" else word for word in words]


def hydra_answer(words: Sequence[str], commands: Collection[str]) -> str | None:
    """What to say to the first of Hydra's options in `words` that is none of ours; None where there is none.

    Only where no command is named: behind one, `-c` and its like are the command's to judge.
    """
    values = {at + 1 for at, word in enumerate(words) if word in _VALUED}
    if any(word in commands for at, word in enumerate(words) if at not in values):
        return None
    for at, word in enumerate(words):
        option, _, value = word.partition("=")
        follows = value or next(iter(words[at + 1 :]), "")
        rest = [w for i, w in enumerate(words) if i != at and is_override(w)]
        if option in _NAMES:
            return _here(option, _command(f"launch up profile={follows}", rest), "a fleet file: launch up -f FILE")
        if option in _PATHS:
            return _here(option, _command(f"launch up --config-dir {follows}", rest))
        if option in _FLAGS or option in _VALUED:
            return _here(option, _command(_FLAGS.get(option) or _VALUED[option], rest))
    return None


def _here(option: str, *commands: str) -> str:
    return f"{option} is Hydra's. Here it is: {', or for '.join(commands)}"


def _command(begin: str, rest: Sequence[str]) -> str:
    return " ".join((begin, *rest))
