"""Flags that no field speaks for: every one of every recorded build is known, by name."""

from __future__ import annotations

import msgspec
import pytest

from launcher.engine import recorded, recorded_names
from launcher.ir.dialect import Dialect, Flag
from launcher.render import TABLE
from launcher.render.passed import FILES, HARMLESS, REFUSED, UNPRICED, by_flag, named_files
from tests.render.plan_factory import render_argv, server_plan

LISTS = {"harmless": by_flag(HARMLESS), "refused": by_flag(REFUSED), "unpriced": by_flag(UNPRICED)}
FOUND = {
    "owned": "engine/flag-conflict",
    "refused": "engine/flag-refused",
    "unpriced": "engine/unplanned-flag",
    "unknown": "engine/unplanned-flag",
}


def places(flag: Flag) -> list[str]:
    """Where a flag is written down: exactly one place, if all is well."""
    names = {*flag.names, *flag.negations}
    owned = any(not meaning.soft and names & {*meaning.owns} for meaning in TABLE)
    soft = any(meaning.soft and names & {*meaning.owns} for meaning in TABLE)
    return ["owned"] * owned + ["soft"] * soft + [place for place, known in LISTS.items() if names & known.keys()]


def codes(dialect: Dialect, *words: str) -> list[str]:
    """What is found about `words` in extra_args."""
    _, findings = render_argv(server_plan(extra_args=words), dialect, "/opt/llama-server")
    return [finding.code for finding in findings]


def example(flag: Flag) -> tuple[str, ...]:
    """The flag as it may be written."""
    value = flag.choices[0] if flag.choices else "1"
    return (flag.names[-1], *((value,) * flag.arity))


@pytest.mark.parametrize("build", recorded_names())
def test_every_flag_has_one_place(build: str) -> None:
    """Owned by a choice of the plan, said by default, harmless for a reason, refused, or known not to be priced."""
    flags = [flag for flag in recorded(build).flags if not flag.removed]
    assert {flag.names: found for flag in flags if len(found := places(flag)) != 1} == {}


@pytest.mark.parametrize("build", recorded_names())
def test_what_is_said_of_each_flag(build: str) -> None:
    """In `extra_args` each is an error, a warning or nothing, as its place says."""
    dialect = recorded(build)
    for flag in dialect.flags:
        if flag.removed or {"--override-kv", "--api-key", "--hf-token"} & {*flag.names}:
            continue
        (place,) = places(flag)
        found = [c for c in codes(dialect, *example(flag)) if c not in {"engine/deprecated-flag", "engine/bad-value"}]
        assert found == ([FOUND[place]] if place in FOUND else []), flag.names


def test_a_flag_that_nobody_knows_is_found_by_name() -> None:
    """A fork's or a newer build's own."""
    dialect = recorded("b11434")
    new = msgspec.structs.replace(dialect, flags=(*dialect.flags, Flag(names=("-tq", "--turbo-quant"), arity=1)))
    server = server_plan(extra_args=("--turbo-quant", "4"))
    _, (finding,) = render_argv(server, new, "/opt/llama-server")
    assert (finding.severity, finding.code, finding.key) == (
        "warning",
        "engine/unplanned-flag",
        "servers.frontdoor.extra_args.0",
    )
    assert "--turbo-quant" in finding.message
    assert finding.fixes[0].override == "servers.frontdoor.extra_args=[]"


def test_lists_have_only_flags_that_a_build_knows() -> None:
    """No list keeps a name that no recorded build has."""
    known = {name for build in recorded_names() for name in recorded(build).index()}
    listed = {flag for flags in LISTS.values() for flag in flags}
    assert listed | FILES.keys() <= known


def test_named_files() -> None:
    """Several with commas, scales behind them, and folders with commas in their names."""
    words = ("--temp", "1", "--lora", "/a.gguf,/b.gguf", "--lora-scaled", "/c:d.gguf:0.5", "--path", "/x,y")
    assert named_files(words) == ("/a.gguf", "/b.gguf", "/c:d.gguf", "/x,y")
    assert named_files(("--log-file", "/log"), "written") == ("/log",)
