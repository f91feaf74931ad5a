"""What an image and a declared unit are made of is there, and is what the commands take."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.metadata import requires
from pathlib import Path

from launcher.cli.app import command_names
from launcher.compiler import compile_fleet

ROOT = Path(__file__).parents[1]


def test_the_image_copies_what_there_is() -> None:
    """Every source of a COPY lies in the checkout; its commands are ours."""
    text = (ROOT / "packaging/Containerfile").read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ") and "--from" not in line]
    sources = [source for line in copied for source in line]
    assert {"launcher", "conf", "templates", "embedded.txt"} <= {*sources}
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert {*re.findall(r'CMD \["(\w+)"', text), *re.findall(r"launch (serve)", text)} <= command_names()


def test_the_images_own_command_compiles() -> None:
    """Its CMD, and the one of its head with a network of its own, which needs keys."""
    text = (ROOT / "packaging/Containerfile").read_text()
    (own,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    with_keys = re.findall(r"runtime\.front\.\S+", text)
    for overrides in ([word for word in json.loads(own) if "=" in word], with_keys):
        found = compile_fleet(["hardware=dev", "profile=dev", *overrides]).findings
        assert [f.message for f in found if f.severity == "error"] == []
    bare = compile_fleet(["hardware=dev", "profile=dev", with_keys[0]]).findings
    assert "route/public-without-key" in {f.code for f in bare}


def test_the_declared_unit_calls_commands_that_there_are() -> None:
    """Of the example for NixOS."""
    text = (ROOT / "packaging/nixos/launch.nix").read_text()
    assert {*re.findall(r"\$\{launch\} (\w+)", text)} == {"up", "reload"} & command_names()


def test_the_declared_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """Its serviceConfig, as NixOS writes it, with programs that are here."""
    text = (ROOT / "packaging/nixos/launch.nix").read_text()
    block = text[text.index("serviceConfig = {") : text.index("};", text.index("serviceConfig = {"))]
    pairs = re.findall(r'^ +(\w+) = ("[^"]*"|true|false|\d+);', block, re.MULTILINE)
    assert {"ExecStart", "ExecReload", "Restart", "ProtectSystem"} <= {key for key, _ in pairs}
    here = {"ExecStart": "/bin/true", "ExecReload": "/bin/true", "User": "root"}
    words = {"true": "yes", "false": "no"}
    lines = [f"{key}={here.get(key) or words.get(value, value.strip(chr(34)))}" for key, value in pairs]
    unit = tmp_path / "launch.service"
    unit.write_text("[Unit]\nDescription=x\n[Service]\n" + "\n".join(lines) + "\n")
    said = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (said.returncode, [line for line in said.stderr.splitlines() if "launch.service" in line]) == (0, [])


def test_every_dependency_has_its_licence_in_the_table() -> None:
    """Those of the package and of the extra `hub`."""
    table = (ROOT / "docs/install.md").read_text().lower()
    named = [re.split(r"[^\w.-]", line)[0] for line in requires("launch-fleet") or () if "extra" not in line]
    assert len(named) > 8
    assert [name for name in named if name.lower() not in table] == []
