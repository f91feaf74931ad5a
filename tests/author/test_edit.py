"""Adding to a person's file and taking away from it."""

from __future__ import annotations

import pytest
import yaml

from launcher.author.edit import NotEditableError, add_server, remove_server

TEXT = """\
# mine
runtime: {front: {port: 9000}}
servers:
  # the big one
  chat: ~/m/chat.gguf   # do not touch

  vision:
    file: ~/m/v.gguf
    # inside
    slots: 1
# at the end
routing: {default: chat}
"""
LINES = ["  # new", "  more:", "    file: /m/more.gguf"]


def test_one_is_added_behind_the_last() -> None:
    """Every line that was there stays."""
    text = add_server(TEXT, LINES)
    assert [line for line in text.splitlines() if line not in LINES] == TEXT.splitlines()
    assert list(yaml.safe_load(text)["servers"]) == ["chat", "vision", "more"]


@pytest.mark.parametrize("before", ["", "a: 1\n", "servers:\n", "servers: {}\n", "servers:\n    x: /m/x.gguf\n"])
def test_where_there_is_no_block_yet(before: str) -> None:
    """A file without servers gets the block; another indentation is kept."""
    servers = yaml.safe_load(add_server(before, LINES))["servers"]
    assert servers["more"] == {"file": "/m/more.gguf"}


def test_one_is_removed_with_its_comment() -> None:
    """And nothing else."""
    assert list(yaml.safe_load(remove_server(TEXT, "vision"))["servers"]) == ["chat"]
    without = remove_server(TEXT, "chat")
    assert "the big one" not in without
    assert "# inside" in without
    assert remove_server(add_server(TEXT, LINES), "more") == TEXT
    assert yaml.safe_load(remove_server("servers:\n  a: /m/a.gguf\n", "a")) == {"servers": {}}


@pytest.mark.parametrize("text", ["servers: {chat: x}\n", "a: 1\n", "servers:\n  other: x\n"])
def test_what_cannot_be_edited(text: str) -> None:
    """It says why instead of guessing."""
    with pytest.raises(NotEditableError):
        remove_server(text, "chat")
