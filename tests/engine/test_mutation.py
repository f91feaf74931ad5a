"""A flag that a build loses turns every use of it into a finding, at the line that asked for it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec
import pytest

from launcher import config
from launcher.compiler import Compilation, compile_fleet
from launcher.engine import recorded_names
from launcher.errors import Finding
from launcher.ir.dialect import Dialect, Flag
from launcher.render import render_commands
from launcher.render.spellings import TABLE

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


def spoken(fleet: Compilation, dialect: Dialect) -> tuple[Finding, ...]:
    """What spelling the fleet in `dialect` finds, with locations."""
    engines = {name: (binary, dialect) for name, (binary, _) in fleet.engines.items()}
    return config.locate(render_commands(fleet.plan, engines)[1], fleet.composed.sources)


@pytest.mark.parametrize("build", recorded_names())
@pytest.mark.parametrize("fleet", [("hardware=epyc", "profile=full"), ("hardware=sovereign", "profile=three_tier")])
def test_a_lost_flag_is_never_used(build: str, fleet: tuple[str, str]) -> None:
    """Without a flag, each server that used it says something else that the build knows, or is an error at its key."""
    whole = compiled(build, *fleet)
    dialect = whole.engines["default"][1]
    assert spoken(whole, dialect) == ()
    lost = 0
    for flag in dialect.flags:
        users = {n for n, c in whole.commands.items() if set(c.argv) & {*flag.names, *flag.negations}}
        if not users:
            continue
        left = without(dialect, flag)
        found = spoken(whole, left)
        engines = {name: (binary, left) for name, (binary, _) in whole.engines.items()}
        commands, _ = render_commands(whole.plan, engines)
        for user in users:
            said = [f for f in found if f.key == f"servers.{user}" or f.key.startswith(f"servers.{user}.")]
            spelled = set(commands[user].argv) & {*flag.names, *flag.negations}
            assert not spelled, (flag.names, user)
            assert all(f.code == "engine/unknown-flag" and f.severity == "error" and f.location for f in said)
            lost += bool(said)
    assert lost > 60


MUST = {"--model", "--port", "--ctx-size", "--parallel", "--cache-type-k", "--override-kv", "--threads", "--cpu-moe"}


def test_flags_without_a_substitute_are_errors_at_their_key() -> None:
    """Losing --ctx-size is an error at n_ctx of each server, where it was written."""
    whole = compiled("b10434", "hardware=epyc", "profile=hot_only")
    dialect = whole.engines["default"][1]
    for meaning in TABLE:
        for name in set(meaning.owns) & MUST:
            flag = dialect.index()[name]
            found = [f for f in spoken(whole, without(dialect, flag)) if f.key.endswith(f".{meaning.key}")]
            users = [n for n, c in whole.commands.items() if set(c.argv) & set(flag.names)]
            assert len(found) == len(users)
            assert {f.code for f in found} <= {"engine/unknown-flag"}
            assert all(f.location and f.location.file.endswith(".yaml") for f in found)


def test_a_lost_flag_in_extra_args_is_found_at_its_line(tmp_path: Path) -> None:
    """The config line that asked for it, to the line."""
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "extra.yaml").write_text(EXTRA, encoding="utf-8")
    whole = compile_fleet(["hardware=dev", "+case=extra", "engines.default.dialect=b10434"], config_dirs=[tmp_path])
    dialect = whole.engines["default"][1]
    assert spoken(whole, dialect) == ()
    first, *_ = spoken(whole, without(dialect, dialect.index()["--prio"]))
    assert (first.code, first.location and first.location.line) == ("engine/unknown-flag", 5)
