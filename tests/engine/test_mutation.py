"""A flag that a build loses turns every use of it into a finding, at the line that asked for it."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import msgspec
import pytest

from launcher import config
from launcher.compiler import Compilation, compile_fleet
from launcher.engine import recorded_names
from launcher.errors import Finding
from launcher.files import packaged_dir
from launcher.ir.dialect import Dialect, Flag
from launcher.render import Command, render_commands
from launcher.render.command import place as place_devices
from launcher.render.spellings import TABLE, Meaning

CONF = packaged_dir("conf")

EXTRA = """\
# @package _global_
servers:
  assistant:
    extra_args:
      - --prio
      - "2"
"""


@cache
def compiled(build: str, *overrides: str) -> Compilation:
    """A shipped fleet for a build."""
    return compile_fleet([*overrides, f"engines.default.dialect={build}"])


def without(dialect: Dialect, flag: Flag) -> Dialect:
    """The dialect with one flag gone."""
    return msgspec.structs.replace(dialect, flags=tuple(f for f in dialect.flags if f is not flag))


def respelled(fleet: Compilation, dialect: Dialect) -> tuple[dict[str, Command], tuple[Finding, ...]]:
    """The fleet's commands in `dialect`, and what that finds, with locations."""
    engines = {name: (binary, dialect) for name, (binary, _) in fleet.engines.items()}
    commands, findings = render_commands(fleet.plan, engines)
    return commands, config.locate(findings, fleet.composed.sources)


def spoken(fleet: Compilation, dialect: Dialect) -> tuple[Finding, ...]:
    """What spelling the fleet in `dialect` finds, with locations."""
    return respelled(fleet, dialect)[1]


FLEETS = {"epyc": ("hardware=epyc", "profile=full"), "sovereign": ("hardware=sovereign", "profile=three_tier")}
"""By the name of the file that has their ports."""
FOLLOWS: dict[str, tuple[str, ...]] = {
    "n_ctx": ("n_ctx", "n_ctx_per_slot"),
    "kv_unified": ("kv_unified", "slots"),
    "n_gpu_layers": ("n_gpu_layers", "devices"),
    "tensor_split": ("tensor_split", "devices"),
    "threads": ("threads", "cpus"),
    "threads_batch": ("threads_batch", "threads", "cpus"),
    "embedding": ("embedding", "pooling"),
    "ngram": ("ngram", "draft"),
    "projector_device": ("projector_device", "projector"),
}
"""Lines of a server's file that ask for a choice, the first one there; a choice that is not here has its own only."""


def line_that_asks(server: str, meaning: Meaning, ports: str) -> str:
    """`file:line` in conf/ of what asks for a choice, found in the text: its own line, or the one it follows from.

    Values that nobody wrote are asked for by the server as a whole, so by the first line of its file; a port without
    a field of its own by the server's entry in the ports. Nothing here looks at what the config stage recorded.
    """
    name = "embedder" if server.startswith("embedder_") else server
    path = CONF / "server" / f"{name}.yaml"
    if "worker_fast" in name:
        path = CONF / "server" / "worker_fast.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    field = meaning.key.partition(".")[0]
    for wanted in FOLLOWS.get(field, (field,)):
        for number, line in enumerate(lines, 1):
            if wanted and line.startswith(f"{wanted}:"):
                return f"server/{path.name}:{number}"
    for number, line in enumerate((CONF / "ports" / f"{ports}.yaml").read_text(encoding="utf-8").splitlines(), 1):
        if field == "port" and line.startswith(f"{server}:"):
            return f"ports/{ports}.yaml:{number}"
    return f"server/{path.name}:1"


def place(finding: Finding) -> str:
    """`file:line` of a finding, in conf/."""
    assert finding.location is not None
    return f"{Path(finding.location.file).relative_to(CONF)}:{finding.location.line}"


@pytest.mark.parametrize("build", recorded_names())
@pytest.mark.parametrize("fleet", FLEETS)
def test_every_use_of_a_lost_flag_is_found_at_the_line_that_asked(build: str, fleet: str) -> None:
    """Each server that used a flag says the same in other words of the build, or one finding stands at that line."""
    whole = compiled(build, *FLEETS[fleet])
    dialect = whole.engines["default"][1]
    assert spoken(whole, dialect) == ()
    told: Counter[str] = Counter()
    for flag in dialect.flags:
        spellings = {*flag.names, *flag.negations}
        left = without(dialect, flag)
        users = {n for n, c in whole.commands.items() if spellings & set(c.argv)}
        commands, found = respelled(whole, left) if users else ({}, ())
        assert {f.code for f in found} <= {"engine/unknown-flag"}
        uses = [(n, m) for n in users for m in TABLE if speaks(whole, n, m, spellings)]
        assert {n for n, _ in uses} == users
        for user, meaning in uses:
            assert not spellings & set(commands[user].argv)
            asked = line_that_asks(user, meaning, fleet)
            here = [f for f in found if is_about(f, user, spellings) and place(f) == asked]
            if not here:
                assert set(commands[user].argv) & set(meaning.owns), (flag.names, user, asked)
                told["in other words"] += 1
                continue
            assert len(here) == 1
            told[here[0].severity] += 1
    assert told["error"] > 90
    assert told["warning"] > 50
    # only locking and mapping, embedding and the user interface have a second word for the same
    assert told["in other words"] <= 3 * len(whole.commands)


def is_about(finding: Finding, server: str, spellings: set[str]) -> bool:
    """Whether the finding is the server's, and says which word is refused."""
    words = set(re.findall(r"--[\w-]+", " ".join((finding.message, *finding.notes))))
    return f".{server}." in f".{finding.key}." and bool(spellings & words)


def speaks(whole: Compilation, server: str, meaning: Meaning, spellings: set[str]) -> bool:
    """Whether this choice is what the server uses the flag for."""
    plan = next(s for s in whole.plan.servers if s.name == server)
    argv = set(whole.commands[server].argv)
    placement, _ = place_devices(plan.settings.devices, whole.plan.config.hardware.gpus, "")
    return any(spellings & set(words) & argv for words in meaning.spell(plan, placement))


def test_a_lost_flag_in_extra_args_is_found_at_its_line(tmp_path: Path) -> None:
    """The config line that asked for it, to the line."""
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "extra.yaml").write_text(EXTRA, encoding="utf-8")
    whole = compile_fleet(["hardware=dev", "+case=extra", "engines.default.dialect=b10068"], config_dirs=[tmp_path])
    dialect = whole.engines["default"][1]
    assert spoken(whole, dialect) == ()
    first, *_ = spoken(whole, without(dialect, dialect.index()["--prio"]))
    assert (first.code, first.location and first.location.line) == ("engine/unknown-flag", 5)
