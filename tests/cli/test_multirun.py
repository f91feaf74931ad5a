"""`launch -m a=1,2`: Hydra's multirun, a row for the plan of each combination."""

from __future__ import annotations

import json
from itertools import product

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from launcher.cli.arguments import with_command
from launcher.cli.build import RUNS_MAX, plan_each
from launcher.config.typed import each_run
from launcher.errors import ConfigError
from tests.cli.test_documents import holds

DEV = ["hardware=dev", "profile=dev"]


@pytest.mark.parametrize(
    "words",
    [
        ["a=1,2", "b=x"],
        ["a=range(1,4)", "+b=choice(x,y)"],
        ["a=[1,2],[3]", "b='x,y',z", "++c.d=1"],
    ],
)
def test_combinations_are_hydras(words: list[str]) -> None:
    """The same as its basic sweeper's, in its order."""
    parsed = OverridesParser.create().parse_overrides(words)
    theirs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    assert sorted(map(list, each_run(words, RUNS_MAX))) == sorted(map(list, theirs))


def test_what_has_no_values_stays() -> None:
    """An interval and words that are no overrides are left for the compiler to refuse."""
    words = ("a=interval(0,1)", "nothing", "a=[", "b=1,2")
    assert each_run(words, RUNS_MAX) == tuple(product(*([w] for w in words[:3]), ["b=1", "b=2"]))


def test_a_row_for_each_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """What fits, what not and why; a plan that cannot be composed is a row, too; only all together fail."""
    slots = "servers.assistant.slots=1,4,999"
    assert plan_each([*DEV, slots], [], as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    holds(document, "launch.multirun/v1")
    runs = document["runs"]
    assert [r["overrides"] for r in runs] == [[f"servers.assistant.slots={n}"] for n in (1, 4, 999)]
    assert [r["fits"] for r in runs] == [True, True, False]
    assert runs[0]["devices"][0]["planned_bytes"] < runs[1]["devices"][0]["planned_bytes"]
    assert plan_each([*DEV, "servers.assistant.tier=hot,hto"], [], as_json=False) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split()[:2] == ["servers.assistant.tier=hot", "yes"]
    assert shown[2].split()[1] == "no"
    assert "error[config/" in shown[2]
    assert plan_each([*DEV, "servers.assistant.slots=998,999"], [], as_json=False) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([f"servers.assistant.slots=range({RUNS_MAX + 2})"], "502 combinations are more than 500"),
        (["a=range(0,400)"] * 4, "25600000000 combinations are more than 500"),
        (["a=range(0,1000000000000)", "b=1,2"], "at least 200000 combinations are more than 500"),
    ],
)
def test_too_many_are_not_made_first(words: list[str], said: str) -> None:
    """They are counted before they are put together: a slip in a range must not fill the memory."""
    with pytest.raises(ConfigError) as refused:
        plan_each(words, [], as_json=False)
    assert [f.message for f in refused.value.findings] == [said]


def test_it_is_written_as_hydra_writes_it() -> None:
    """`launch -m a=1,2` is `launch plan -m a=1,2`."""
    assert with_command(["-m", "a=1,2"], ["plan", "up"]) == ["plan", "-m", "a=1,2"]
