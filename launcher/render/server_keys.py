"""Key files of servers that ask for a key (`--api-key-file`), which units hand over as credentials. Pure."""

from __future__ import annotations

from itertools import pairwise

FLAG = "--api-key-file"
CREDENTIAL = "%d/api-key"
"""Where a unit finds the copy that systemd made of the file."""


def own_key_file(extra_args: tuple[str, ...]) -> str | None:
    """The file that `--api-key-file` among the extra arguments names: without its key the front would be refused."""
    for flag, value in pairwise((*extra_args, "")):
        if flag == FLAG:
            return value
        if flag.startswith(f"{FLAG}="):
            return flag.partition("=")[2]
    return None


def with_credential(words: tuple[str, ...], quoted: tuple[str, ...]) -> tuple[str, ...]:
    """`quoted`, which are `words` for a unit, with the credential for the key file; its `%` is systemd's to replace."""
    result = list(quoted)
    for at, word in enumerate(words):
        if at and words[at - 1] == FLAG:
            result[at] = CREDENTIAL
        elif word.startswith(f"{FLAG}="):
            result[at] = f"{FLAG}={CREDENTIAL}"
    return tuple(result)
