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


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_keep_their_ends(end: str, mark: str) -> None:
    """A file of another system, with a byte order mark: what is added ends as they do, and leaves no trace."""
    before = mark + TEXT.replace("\n", end)
    longer = add_server(before, LINES)
    assert longer == mark + add_server(TEXT, LINES).replace("\n", end)
    assert remove_server(longer, "more") == before


def test_mixed_ends_stay_where_they_were() -> None:
    """Lines of two systems in one file."""
    before = "servers:\r\n  a: /m/a.gguf\n  b: /m/b.gguf\r\n# end\n"
    assert remove_server(add_server(before, LINES), "more") == before
    assert remove_server(before, "a") == "servers:\r\n  b: /m/b.gguf\r\n# end\n"


@pytest.mark.parametrize(
    "text",
    [
        "servers:\n  a: {file: x,\n  slots: 1}\n  b: y\n",
        "servers:\n  a:\n    file: x\n    request_defaults: &r {n: 1}\n  b: {file: y, request_defaults: *r}\n",
        "servers:\n  a: &a {file: x}\n  b: {<<: *a, slots: 1}\n",
        "servers:\n  a: x\n  a: y\n",
    ],
    ids=["lines further left", "anchor", "merge", "twice"],
)
def test_what_others_need_is_not_taken_away(text: str) -> None:
    """Nothing that a person wrote breaks, or means something else."""
    with pytest.raises(NotEditableError, match="others need what stands in a"):
        remove_server(text, "a")


def test_a_comment_at_the_margin_is_in_the_midst_of_an_entry() -> None:
    """What stands below it goes with its server, not to the one above."""
    text = "servers:\n  z:\n    file: z\n  a:\n    file: a\n#    slots: 2\n    slots: 1\n# tail\n  b: b\n"
    assert remove_server(text, "a") == "servers:\n  z:\n    file: z\n# tail\n  b: b\n"


def test_comments_of_a_person_above_ours_stay() -> None:
    """A server that was written out of service above the one that we added."""
    text = "servers:\n  a: x\n  # old: y\n"
    ours = ["  # More: 5.0 GiB, always up; 4,096 tokens a slot", *LINES[1:]]
    assert remove_server(add_server(text, ours), "more") == text


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ('"servers":\n  a: x\n', None),
        ("servers: &all\n  a: x\n", None),
        ("servers:\n  a:\tx\t# tab\n", None),
        ("---\na: 1\n...\n", ["a", "servers"]),
    ],
    ids=["quoted", "anchor", "tabs", "document"],
)
def test_other_ways_to_write_the_block(text: str, after: list[str] | None) -> None:
    """As the config reader takes them."""
    longer = add_server(text, LINES)
    assert "more" in yaml.load(longer, yaml.CSafeLoader)["servers"]
    assert longer.startswith(text) if after is None else list(yaml.safe_load(longer)) == after


def test_no_yaml_is_not_edited() -> None:
    """A date that is none, as well as brackets that are open."""
    for broken in ("a: 2024-99-99\n", "a: [\n"):
        with pytest.raises(NotEditableError, match="not YAML"):
            add_server(broken, LINES)
