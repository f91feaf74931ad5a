"""Whatever is written and typed, the only exception is ConfigError, and its findings have places and remedies."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.composing import compose
from launcher.errors import ConfigError
from tests.config.conftest import FILES, Conf

NAMES = st.sampled_from(
    [
        "frontdoor",
        "coder",
        "embedder",
        "tiny",
        "hot",
        "q4_k_m",
        "dev",
        "both",
        "bad",
        "epyc",
        "_self_",
        "???",
        "",
        "/server",
        "@x",
        "${hardware}",
    ]
)
GROUPS = st.sampled_from(
    [
        "server",
        "/server",
        "hardware",
        "/profile",
        "model",
        "tier",
        "override /hardware",
        "optional x",
        "/server@servers.b",
        "zzz",
    ]
)
DEFAULTS = st.lists(
    NAMES | st.dictionaries(GROUPS, NAMES | st.lists(NAMES, max_size=2) | st.none(), max_size=2) | st.integers(),
    max_size=4,
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    NAMES,
    st.sampled_from(["${a}", "${hardware.name}", "${", "\\${x}"]),
)
TREES = st.recursive(
    LEAVES,
    lambda v: (
        st.lists(v, max_size=2)
        | st.dictionaries(st.sampled_from(["servers", "coder", "slots", "model", "x", 1]), v, max_size=3)
    ),
    max_leaves=8,
)
PATHS = st.sampled_from([*FILES, "server/new.yaml", "profile/bad.yaml", "zzz/x.yaml"])
HEADERS = st.sampled_from(
    ["", "# @package _global_\n", "# @package servers.coder\n", "# @package a\n", "# @package\n", "#\n"]
)


@st.composite
def files(draw: st.DrawFn) -> str:
    """A config file: a mapping with or without defaults list, or any text."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.text())
    tree: dict[Any, Any] = draw(
        st.dictionaries(st.sampled_from(["servers", "model", "slots", "name", "x"]), TREES, max_size=3)
    )
    if draw(st.booleans()):
        tree["defaults"] = draw(DEFAULTS)
    return draw(HEADERS) + yaml.safe_dump(tree)


@st.composite
def words(draw: st.DrawFn) -> str:
    """An override, sensible or not."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.text())
    sign = draw(st.sampled_from(["", "", "+", "++", "~"]))
    key = draw(
        st.sampled_from(
            [
                "server",
                "hardware",
                "profile",
                "model",
                "server@servers.b",
                "servers.coder",
                "servers.coder.slots",
                "servers.coder.roles.0",
                "include_warm",
                "routing.fallback",
                "ports",
                "ports.coder",
                "x.y",
                "engine",
                "hydra.run.dir",
                "hydra/launcher",
                "",
            ]
        )
    )
    value = draw(
        st.sampled_from(
            [
                "",
                "1",
                "x",
                "frontdoor",
                "embedder",
                "[embedder]",
                "[coder,x]",
                "null",
                "{a: 1}",
                "{coder: {slots: x}}",
                "a,b",
                "${x}",
                "epyc",
            ]
        )
    )
    return f"{sign}{key}={value}" if draw(st.integers(0, 5)) else f"{sign}{key}"


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(PATHS, files(), max_size=3), st.lists(words(), max_size=4))
def test_only_config_errors_come_out(changed: dict[str, str], overrides: list[str]) -> None:
    """Random files and random words either compose or are refused with located findings."""
    with tempfile.TemporaryDirectory() as directory:
        conf = Conf(Path(directory))
        for path, text in changed.items():
            conf.write({path: text.encode("utf-8", "replace")})
        try:
            found = compose(overrides, config_dirs=[conf.root]).findings
        except ConfigError as error:
            found = error.findings
            assert any(f.severity == "error" for f in found)
        for finding in found:
            assert finding.location is not None
            assert finding.fixes or finding.notes
