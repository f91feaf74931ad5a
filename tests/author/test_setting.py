"""One value written into a YAML text: with its reason, and nothing else touched."""

from __future__ import annotations

import pytest
import yaml

from launcher.author.edit import NotEditableError, set_value

TEXT = """\
# mine
servers:
    chat:
        file: a.gguf   # small
        slots: 2  # enough
        draft:
            n_max: 8

    other: b.gguf
runtime: {front: {port: 8000}}
"""


def test_a_value_is_replaced_or_added() -> None:
    """At the depth of its block; the reason stands above it, and a second one takes the first one's place."""
    once = set_value(TEXT, ("servers", "chat", "slots"), "4", "first")
    assert once == TEXT.replace("        slots: 2  # enough\n", "        # sweep first\n        slots: 4\n")
    again = set_value(once, ("servers", "chat", "slots"), "8", "second")
    assert again == once.replace("first", "second").replace("slots: 4", "slots: 8")
    more = set_value(again, ("servers", "chat", "draft", "n_max"), "16", "third")
    more = set_value(more, ("servers", "chat", "n_ubatch"), "256", "fourth")
    tree = yaml.safe_load(more)["servers"]
    assert tree == {"chat": {"file": "a.gguf", "slots": 8, "draft": {"n_max": 16}, "n_ubatch": 256}, "other": "b.gguf"}
    assert "# small" in more
    assert set_value("# @package servers.a\nmodel: m\n", ("slots",), "2", "x").endswith("# sweep x\nslots: 2\n")


def test_what_cannot_be_edited_is_refused() -> None:
    """A server in one line, one that is not there, a value of several lines."""
    for path in (("servers", "other", "slots"), ("servers", "none", "slots"), ("runtime", "front", "port")):
        with pytest.raises(NotEditableError, match="not a block"):
            set_value(TEXT, path, "1", "x")
    with pytest.raises(NotEditableError, match="several lines"):
        set_value(TEXT, ("servers", "chat", "draft"), "null", "x")
