"""Quoting for systemd and sh: whatever goes in comes back."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.render.quoting import quote_assignments, quote_bind, quote_command, shell_exports, shell_lines

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
nasty = st.text(st.sampled_from("ab \t\n\r\\\"'$%;#{}`!~*?:=-\x01\x1b\x7f\x85\u2028\u00e9\U0001f600"))
words = st.lists(st.one_of(text, nasty), max_size=6)

ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " "}


def unescape(rest: str) -> tuple[str, int]:
    """One escape after a backslash (src/basic/escape.c cunescape_one): its character and its length."""
    if rest[0] == "x":
        return chr(int(rest[1:3], 16)), 3
    if rest[0] == "u":
        return chr(int(rest[1:5], 16)), 5
    return ESCAPES.get(rest[0], rest[0]), 1


def systemd_words(value: str, *, escapes: bool = True) -> list[str]:
    """The words of a unit file's value (src/basic/extract-word.c, UNQUOTE and CUNESCAPE), line breaks joined."""
    value = value.replace("\\\n", " ")
    found: list[str] = []
    position, quote, word = 0, "", None
    while position < len(value):
        char = value[position]
        position += 1
        if char == "\\":
            assert position < len(value)
            piece, length = unescape(value[position:]) if escapes else (value[position], 1)
            word, position = (word or "") + piece, position + length
        elif quote:
            word, quote = ((word or ""), "") if char == quote else ((word or "") + char, quote)
        elif char in "\"'":
            quote, word = char, word or ""
        elif char in " \t\r\n":
            found += [word] if word is not None else []
            word = None
        else:
            word = (word or "") + char
    assert not quote
    return found + ([word] if word is not None else [])


def specifiers(word: str) -> str:
    """`%%` → `%`; any other specifier fails."""
    assert "%" not in word.replace("%%", "")
    return word.replace("%%", "%")


def variables(word: str) -> str:
    """`$$` → `$`; any variable fails (src/basic/env-util.c replace_env)."""
    assert "$" not in word.replace("$$", "")
    return word.replace("$$", "$")


@given(words)
def test_commands_come_back_from_systemd(argv: list[str]) -> None:
    """ExecStart= with a line break between any two words."""
    line = " \\\n    ".join(quote_command(["/bin/a%b", *argv]))
    assert "\n" not in line.replace("\\\n", "")
    program, *rest = (specifiers(w) for w in systemd_words(line))
    assert program == "/bin/a%b"
    assert [variables(w) for w in rest] == argv


@given(st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), st.one_of(text, nasty), max_size=4))
def test_assignments_come_back_from_systemd(env: dict[str, str]) -> None:
    """Environment=, where `$` is a plain character."""
    back = [specifiers(w) for line in quote_assignments(env) for w in systemd_words(line)]
    assert back == [f"{name}={value}" for name, value in sorted(env.items())]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_bound_paths_come_back_from_systemd(path: str) -> None:
    """BindReadOnlyPaths= without control characters: one word, no `:` outside quotes."""
    line = quote_bind(f"/{path}")
    assert [specifiers(w) for w in systemd_words(line, escapes=False)] == [f"/{path}"]
    assert ":" not in line or line.startswith('"')


@pytest.mark.parametrize("word", [";", "#", "", "@x", "-", "a b", "~"])
def test_words_with_a_meaning_of_their_own_are_quoted(word: str) -> None:
    """A bare `;` would end the command, an empty word would vanish."""
    quoted = quote_command(["/bin/true", word])[1]
    assert quoted.startswith('"') or word in ("@x", "-")


@settings(max_examples=40)
@given(words, st.dictionaries(st.sampled_from(["A", "B_1"]), st.one_of(text, nasty)))
def test_scripts_come_back_from_sh(argv: list[str], env: dict[str, str]) -> None:
    """A real sh sees the words and the environment that were meant."""
    lines = " \\\n    ".join(shell_lines(["x", *argv]))
    shown = r'printf "%s\0" "$@" "${A-unset}" "${B_1-unset}"'
    script = "\n".join([*shell_exports(env), f"set -- {lines}", shown])
    out = subprocess.run(["sh", "-c", script], capture_output=True, check=True, env={}).stdout
    expected = ["x", *argv, env.get("A", "unset"), env.get("B_1", "unset")]
    assert out == b"".join(word.encode() + b"\0" for word in expected)
