"""Why a program cannot be run: each way with its own words, before it is tried."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.base.programs import interpreter, why_not_runnable

LOADER = b"/lib/ld-nowhere.so.1\0"


def foreign(*, table: int = 64, offset: int = 120, length: int = len(LOADER)) -> bytes:
    """An ELF file for a loader that is not there; a broken one says that its parts are elsewhere."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0>\0\1\0\0\0" + bytes(8) + table.to_bytes(8, "little") + bytes(14)
    program = (3).to_bytes(4, "little") + bytes(4) + offset.to_bytes(8, "little") + bytes(16)
    return head + b"\x38\0\1\0" + bytes(6) + program + length.to_bytes(8, "little") + bytes(16) + LOADER


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "(nothing) names no program"),
        ("no-such-program-of-ours", "is not on this host"),
        ("{}/gone", "is not on this host"),
        ("{}/dead", "is a link to nowhere, which is not there"),
        ("{}/self", "is a link that leads to itself"),
        ("{}/text/llama-server", "cannot be run: Not a directory"),
        ("{}", "is a directory: name the program in it"),
        ("{}/pipe", "is no regular file"),
        ("{}/text", "is not executable: chmod +x {}/text"),
        ("{}/script", "is a script for /nope/sh, which is not there"),
        ("{}/windows", "is a script with line ends of Windows (CRLF): nothing has the name of its interpreter"),
        ("{}/nothing", "is an empty file"),
        ("{}/foreign", "is a program for the loader /lib/ld-nowhere.so.1, which is not there"),
        ("{}/garbage", None),
        ("{}/stump", None),
        ("{}/no-table", None),
        ("{}/no-name", None),
        ("{}/endless", "is a program for the loader /lib/ld-nowhere.so.1, which is not there"),
        ("{}/long", f"is a script for /{'a' * 4000}, which is not there"),
        ("sh", None),
    ],
)
def test_each_reason(name: str, why: str | None, tmp_path: Path) -> None:
    """None for what may be tried: the kernel says the rest."""
    (tmp_path / "dead").symlink_to("nowhere")
    (tmp_path / "self").symlink_to("self")
    os.mkfifo(tmp_path / "pipe", 0o755)
    (tmp_path / "text").write_text("")
    files = {
        "script": b"#! /nope/sh -e\n",
        "windows": b"#!/bin/sh\r\n",
        "nothing": b"",
        "foreign": foreign(),
        "garbage": b"\x7fELF\x02\x01",
        "stump": b"#!",
        "no-table": foreign(table=2**64 - 1),
        "no-name": foreign(offset=2**63),
        "endless": foreign(length=2**64 - 1),
        "long": b"#!/" + b"a" * 4000 + b"\n",
    }
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
        (tmp_path / file).chmod(0o755)
    assert why_not_runnable(name.format(tmp_path)) == (why and why.format(tmp_path))


def test_what_runs_a_program(llama_server: Path, tmp_path: Path) -> None:
    """A loader, a script's program, nothing."""
    assert interpreter(llama_server) == ("elf", "/lib64/ld-linux-x86-64.so.2")
    assert interpreter(tmp_path / "gone") == ("other", None)
