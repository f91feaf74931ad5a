"""Servers of a person's file put into a group, and out of it again."""

from __future__ import annotations

import pytest
import yaml

from launcher.author import add_server, leave_group, remove_server, share
from launcher.author.edit import NotEditableError

TEXT = """\
# mine
servers:
  # the big one
  chat: ~/m/chat.gguf   # do not touch

  vision:
    file: ~/m/v.gguf
    # inside
    slots: 1
  "coder": {file: ~/m/c.gguf, slots: 2}  # {mine}
  # Qwen3 8B: 17.4 GiB, always up; 32,768 of its 40,960 tokens a slot
  qwen:
    file: ~/m/q.gguf
    n_ctx_per_slot: 32768
# at the end
routing: {default: chat}
"""


def entries(text: str) -> dict[str, object]:
    """The servers."""
    found: dict[str, object] = yaml.safe_load(text)["servers"]
    return found


@pytest.mark.parametrize("name", ["chat", "vision", "coder", "qwen"])
def test_one_line_more_and_back(name: str) -> None:
    """Whatever an entry looks like: all that stood there stands there still; alone, it is as before."""
    text = share(TEXT, name, "turns", "they do not fit together")
    was = entries(TEXT)[name]
    mine = was if isinstance(was, dict) else {"file": was}
    assert entries(text) == entries(TEXT) | {name: mine | {"exclusive": "turns"}}
    for words in ("# mine", "# the big one", "# do not touch", "# inside", "# {mine}", "# at the end"):
        assert words in text
    assert text.count("# launch add: they do not fit together") == 1
    back = leave_group(text, "turns")
    assert entries(back) == entries(TEXT) | {name: mine}
    assert back == TEXT or name == "chat"  # which stays a mapping
    assert leave_group(back, "turns") == back
    assert share(text, name, "turns", "again") == text


def test_what_we_said_of_it_stays_true() -> None:
    """Our own comment above an entry says when it is up."""
    text = share(TEXT, "qwen", "turns", "they do not fit together")
    assert "# Qwen3 8B: 17.4 GiB, up first, then takes turns; 32,768 of" in text
    assert leave_group(text, "turns") == TEXT


def test_of_a_group_that_init_made_the_last_is_up_always() -> None:
    """What stands below our comment as we write it is ours."""
    lines = ["  # B: 9.1 GiB, takes turns: they do not fit together; all 512 tokens", "  b:", "    file: /m/b.gguf"]
    text = add_server("servers:\n  a: /m/a.gguf\n", [*lines, "    exclusive: turns", "    tier: warm"])
    assert entries(leave_group(text, "turns")) == {"a": "/m/a.gguf", "b": {"file": "/m/b.gguf"}}
    assert "# B: 9.1 GiB, always up; all 512 tokens" in leave_group(text, "turns")


@pytest.mark.parametrize(
    "text",
    [
        "servers:\n  a: {file: x, exclusive: turns}\n  b: y\n",
        "servers:\n  # mine: takes turns; at night\n  a:\n    file: x\n    exclusive: turns\n    tier: warm\n",
        "servers:\n  a: {exclusive: turns}\n  b: {exclusive: turns}\n",
        "a: 1\n",
    ],
)
def test_what_a_person_wrote_stays(text: str) -> None:
    """A group by hand, one of several, none."""
    assert leave_group(text, "turns") == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("servers:\n  a: {file: x, exclusive: night}\n", "servers.a.exclusive is written there: night"),
        ("servers:\n  a:\n    exclusive: null\n", "is written there"),
        ("servers:\n  a: &x\n    {file: x,\n     slots: 1}\n", "in a way that is not edited"),
        ("servers:\n  a: |\n    x.gguf\n", "in a way that is not edited"),
        ("servers: {a: x}\n", "written in one line"),
        ("servers:\n  b: x\n", "not an entry"),
        ("base: &b {file: x}\nservers:\n  a: *b\n", "in a way that is not edited"),
    ],
)
def test_what_is_not_edited(text: str, why: str) -> None:
    """It says why, and where."""
    with pytest.raises(NotEditableError, match=why):
        share(text, "a", "turns", "x")


def test_another_group_where_that_is_asked_for() -> None:
    """The comment beside it stays."""
    for text in (
        "servers:\n  a:\n    file: x\n    exclusive: night  # hers\n",
        "servers:\n  a: {exclusive: night}  # hers\n",
    ):
        longer = share(text, "a", "turns", "x", over=True)
        assert longer == text.replace("night", "turns")


def test_an_entry_is_no_key_of_another() -> None:
    """A server that is called like a field of one above it."""
    text = "servers:\n  a:\n    file: x\n    draft: y\n  draft: z\n"
    assert entries(remove_server(text, "draft")) == {"a": {"file": "x", "draft": "y"}}
    assert add_server("servers: {}  # none yet\n", ["  b: y"]) == "servers:  # none yet\n  b: y\n"


def test_a_group_whose_name_yaml_reads_as_something_else() -> None:
    """Somebody's group "null", or "1": it stays that word."""
    for group in ("null", "1", "my group"):
        text = share("servers:\n  a: {file: x}\n  b: y\n", "a", group, "why", over=False)
        assert yaml.safe_load(text)["servers"]["a"]["exclusive"] == group
        assert leave_group(text, group) == "servers:\n  a: {file: x}\n  b: y\n"
