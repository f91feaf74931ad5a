"""Value overrides: Hydra's semantics on plain values, and the ease for declared keys."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.cli.app import command_names
from launcher.config.assignments import assign
from launcher.config.located import LocatedTree, flatten
from launcher.config.nearest import spell
from launcher.config.schema import Anything, shape_of
from launcher.config.typed import COMMANDS, parse_overrides
from launcher.errors import Finding, Location
from launcher.ir.config import FleetConfig
from tests.config.conftest import Conf

NAMES = st.sampled_from("abc")
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.sampled_from(["x", "???", "two words", "", "1", "true", "a.b"])
)
VALUES = st.recursive(
    SCALARS, lambda v: st.one_of(st.lists(v, max_size=2), st.dictionaries(NAMES, v, max_size=2)), max_leaves=5
)
TREES = st.dictionaries(NAMES, VALUES, max_size=3)
KEYS = st.lists(st.sampled_from("aabbc01"), min_size=1, max_size=3).map(".".join)


@st.composite
def override_texts(draw: st.DrawFn) -> str:
    """An override of a small tree, in any of the forms that Hydra knows."""
    sign = draw(st.sampled_from(["", "", "+", "++", "~"]))
    key = draw(KEYS)
    if sign == "~" and draw(st.booleans()):
        return f"~{key}"
    return f"{sign}{key}={spell(draw(VALUES))}"


def by_hydra(tree: dict[str, Any], text: str) -> Any:
    """What Hydra makes of the override; None when it refuses."""
    config = OmegaConf.create(copy.deepcopy(tree))
    OmegaConf.set_struct(config, True)
    try:
        overrides = OverridesParser.create().parse_overrides([text])
        ConfigLoaderImpl._apply_overrides_to_config(overrides, config)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError, KeyError, IndexError):
        return None
    return OmegaConf.to_container(config)


def by_us(tree: dict[str, Any], *texts: str, shape: Any = None) -> tuple[dict[str, Any], list[Finding], LocatedTree]:
    """What we make of the overrides."""
    located = LocatedTree()
    located.embed(tree, "", {"": Location(file="f", line=1)})
    typed, findings = parse_overrides(texts)
    findings += assign(located, typed, shape or Anything(), ("hardware", "server"))
    return located.tree, findings, located


@settings(max_examples=200)
@given(TREES, override_texts())
def test_an_override_does_what_hydra_does(tree: dict[str, Any], text: str) -> None:
    """Result and refusal are Hydra's for every form of override on any tree."""
    expected = by_hydra(tree, text)
    result, findings, _ = by_us(tree, text)
    if expected is None:
        assert findings, result
    else:
        assert not findings
        assert result == expected


@given(VALUES)
def test_a_spelled_value_reads_back(value: Any) -> None:
    """The override text made for a fix means the value it was made from."""
    typed, findings = parse_overrides([f"a={spell(value)}"])
    assert not findings
    assert typed[0].value == value


@given(st.text())
def test_any_spelled_string_reads_back(text: str) -> None:
    """Quotes, backslashes and spaces survive."""
    typed, findings = parse_overrides([f"a={spell(text)}"])
    assert not findings
    assert typed[0].value == text


FLEET = shape_of(FleetConfig)
TREE = {
    "hardware": {"name": "epyc", "ram_bytes": 5},
    "servers": {"frontdoor": {"slots": 2, "draft": None, "devices": ["cuda0"]}},
    "ports": {"frontdoor": 8080},
}


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("servers.frontdoor.slots=4", "servers.frontdoor.slots", 4),
        ("servers.frontdoor.kv_unified=true", "servers.frontdoor.kv_unified", True),
        ("servers.frontdoor.draft.n_max=8", "servers.frontdoor.draft", {"n_max": 8}),
        ("routing.escalation.max_retries=1", "routing.escalation.max_retries", 1),
        ("routing.fallback={a: [b]}", "routing.fallback", {"a": ["b"]}),
        ("servers.frontdoor.devices.0=cuda1", "servers.frontdoor.devices.0", "cuda1"),
        ("servers.frontdoor={kv_unified: true}", "servers.frontdoor.kv_unified", True),
        ("+servers.second={model: m}", "servers.second.model", "m"),
        ("+servers.frontdoor.env.OMP=x", "servers.frontdoor.env", {"OMP": "x"}),
        ("++servers.frontdoor.slots=9", "servers.frontdoor.slots", 9),
        ("flash='a'", None, None),
    ],
)
def test_declared_keys_need_no_plus(text: str, key: str | None, value: Any) -> None:
    """`=` takes keys that files wrote or that the types declare, and nothing else."""
    tree, findings, located = by_us(copy.deepcopy(TREE), text, shape=FLEET)
    if key is None:
        assert [f.code for f in findings] == ["config/unknown-key"]
        return
    assert not findings
    assert located.find(key.split(".")) == value
    assert str(located.locations.get(key)).startswith("<command line>:1")
    assert tree["ports"] == TREE["ports"]


@pytest.mark.parametrize(
    ("text", "code", "fix"),
    [
        ("servers.frontdor.slots=4", "config/unknown-key", "servers.frontdoor.slots=4"),
        ("servers.frontdoor.slotz=4", "config/unknown-key", "servers.frontdoor.slots=4"),
        ("++servers.frontdoor.devices.7=x", "config/override", None),
        ("frontdoor.slots=4", "config/unknown-key", "servers.frontdoor.slots=4"),
        ("front.port=4", "config/unknown-key", "runtime.front.port=4"),
        ("ports.other=9000", "config/unknown-key", "+ports.other=9000"),
        ("servers.frontdoor={slotz: 4}", "config/unknown-key", "+servers.frontdoor={slotz: 4}"),
        ("hardware.name.x=1", "config/unknown-key", None),
        ("hardwre=epyc", "config/unknown-group", "hardware=epyc"),
        ("hardwre@x=epyc", "config/unknown-group", "hardware@x=epyc"),
        ("+ports.frontdoor=1", "config/override", "ports.frontdoor=1"),
        ("~servers.frontdor", "config/unknown-key", "~servers.frontdoor"),
        ("~ports.frontdoor=1", "config/override", "~ports.frontdoor"),
        ("~servers.frontdoor.devices.0", "config/override", None),
        ("servers.frontdoor.devices={a: 1}", "config/override", "~servers.frontdoor.devices"),
        ("ports=[1]", "config/override", "~ports"),
        ("=1", "config/override", None),
        ("a.b", "config/override", None),
        ("a=[", "config/override", None),
        ("servers.frontdoor.cpus=0-3;8", "config/override", "servers.frontdoor.cpus='0-3;8'"),
        ("servers.frontdoor.slots=1,2", "config/override", "servers.frontdoor.slots=1"),
        ("servers.frontdoor.roles=a,b", "config/override", "servers.frontdoor.roles=[a,b]"),
        ("servers.frontdoor.cpus=1,2", "config/override", "servers.frontdoor.cpus='1,2'"),
        ("servers.frontdoor.slots=range(1,4)", "config/override", None),
        ("a=int(x)", "config/override", None),
        ("a=\udcff", "config/override", None),
    ],
)
def test_a_refused_override_is_one_finding(text: str, code: str, fix: str | None) -> None:
    """Each has its code, its position on the command line, and the override that was meant where one is near."""
    _, findings, _ = by_us(copy.deepcopy(TREE), "ports.frontdoor=8080", text, shape=FLEET)
    (finding,) = findings
    assert finding.code == code
    assert str(finding.location) == "<command line>:2:1"
    assert [f.override for f in finding.fixes][:1] == ([fix] if fix else [])
    assert finding.fixes or finding.notes
    if fix and code in ("config/unknown-key", "config/unknown-group") and "hardware" not in fix:
        assert not by_us(copy.deepcopy(TREE), fix, shape=FLEET)[1]


def test_locations_follow_the_last_writer() -> None:
    """A replaced value is where it was typed; a removed one is nowhere."""
    tree = {"a": {"b": [{"c": 1}], "d": 2}}
    located = LocatedTree()
    marks = {"": Location(file="f", line=1), "a.b": Location(file="f", line=2), "a.b.0.c": Location(file="f", line=3)}
    located.embed(tree, "", {**marks, "a": Location(file="f", line=2), "a.d": Location(file="f", line=9)})
    typed, _ = parse_overrides(["a.b=[]", "~a.d"])
    assert not assign(located, typed, Anything())
    assert located.locations["a.b"] == Location(file="<command line>", line=1)
    assert "a.b.0.c" not in located.locations
    assert "a.d" not in located.locations
    assert tree == {"a": {"b": [{"c": 1}], "d": 2}}


@given(st.lists(TREES, min_size=1, max_size=4))
def test_merging_files_is_omegaconfs_merge(trees: list[dict[str, Any]]) -> None:
    """Mappings merge, lists and values replace, ??? replaces nothing; and every value has a location.

    A list over a mapping is refused by OmegaConf; here it replaces, and decoding says what the key must be.
    """
    try:
        expected = OmegaConf.to_container(OmegaConf.merge(*[OmegaConf.create(copy.deepcopy(t)) for t in trees]))
    except OmegaConfBaseException:
        reject()
    located = LocatedTree()
    for number, tree in enumerate(trees, 1):
        at = Location(file="f", line=number)
        located.embed(tree, "", {"": at} | {key: at for key, _ in flatten(tree)})
    assert located.tree == expected
    for key, value in flatten(expected):
        line = located.locations[key].line
        winner = dict(flatten(trees[line - 1]))
        assert winner.get(key, "???") == value


@given(st.lists(st.text(max_size=20) | override_texts(), max_size=4))
def test_junk_overrides_never_raise(texts: list[str]) -> None:
    """Any words are applied or refused with a position and a remedy."""
    _, findings, _ = by_us(copy.deepcopy(TREE), *texts, shape=FLEET)
    for finding in findings:
        assert finding.location is not None
        assert finding.location.file == "<command line>"
        assert finding.fixes or finding.notes


TOKENS = re.compile(r"EQUAL|EOF|viable|expecting|extraneous|mismatched|recognition|Exception|KEY_SPECIAL")
"""Words of the parser generator behind Hydra's grammar."""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dev x", "is no override: it has no `=`"),
        ("profile:dev", "is no override: it has no `=`"),
        ("+", "it names no key"),
        ("", "it names no key"),
        ("a.=3", "cannot be a key"),
        ("1a=3", "cannot be a key"),
        ("a b=3", "cannot be a key"),
        ("~a.b c", "cannot be a key"),
        ("a=[1,2", "a bracket has no partner: ["),
        ("a=[]]", "a bracket has no partner: ]"),
        ("a=)", "a bracket has no partner: )"),
        ("a='x", "a quote is opened and not closed"),
        ("a=[1,,2]", "a list is [a,b]"),
        ("a=x=y", "must be quoted"),
        ("a=b#c", "must be quoted"),
        ("a=foo(1)", "Unknown function 'foo'"),
        ("a=int(x)", "'int(x)' cannot be evaluated: invalid literal"),
    ],
)
def test_grammar_errors_are_in_plain_words(conf: Conf, text: str, said: str) -> None:
    """What is wrong with it, and none of the parser's tokens."""
    finding = conf.finding(text)
    assert (finding.code, str(finding.location)) == ("config/override", "<command line>:1:1")
    assert said in finding.message
    assert not [t for t in (finding.message, *finding.notes) if TOKENS.search(t)]


@given(st.text("a.b=[]{}(),:'\"+~@#$ \\é1", max_size=12))
def test_no_text_shows_the_parsers_tokens(text: str) -> None:
    """Whatever is typed."""
    for finding in parse_overrides([text])[1]:
        assert not TOKENS.search(finding.message)


def test_a_bare_word_is_told_what_it_may_have_meant(conf: Conf) -> None:
    """A command in the wrong place, an option of a group, a group, or nothing known."""
    (command,) = conf.findings("profile=dev", "plan")
    assert (str(command.location), command.notes) == (
        "<command line>:2:1",
        ("commands go first: launch plan profile=dev",),
    )
    option = conf.finding("both")
    assert [f.override for f in option.fixes] == ["profile=both"]
    conf.compose(option.fixes[0].override)
    assert conf.finding("profile").notes == ("choose one: profile=…, of: both, dev",)
    assert conf.finding("frobnicate").notes == ("write KEY=VALUE: frobnicate=…",)
    assert command_names() == COMMANDS


def test_huge_values_are_cut_out_of_messages(conf: Conf) -> None:
    """The beginning and the end of a message stay; fixes that repeat the value are dropped."""
    huge = "x" * 100_000
    for override in (
        f"servers.coder.slotz={huge}",
        f"a='{huge}",
        f"servers.coder.model={huge}",
        huge,
        f"profile={huge}",
    ):
        for finding in conf.findings(override):
            assert all(len(t) <= 500 for t in (finding.message, *finding.notes, *(f.override for f in finding.fixes)))
            assert finding.notes
    assert conf.finding(f"servers.coder.slotz={huge}").message.endswith("there is no servers.coder.slotz")
