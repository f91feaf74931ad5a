"""Each file of the packaged config is one thing, says where it goes, and what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
IN_GROUPS = [path for path in FILES if path.parent != CONF]
COLLECTIONS = {
    "hook": "hooks.",
    "model": "models.",
    "quantization": "quantizations.",
    "server": "servers.",
    "service": "services.",
    "tier": "tiers.",
}
PLACES = {
    "deploy": "deploy",
    "engine": "engines.default",
    "hardware": "hardware",
    "orchestration": "orchestration",
    "ports": "ports",
    "profile": "_global_",
    "routing": "routing",
    "runtime": "runtime",
}
NAMED_OTHERWISE = {"frontdoor_dev": "frontdoor", "nextplaid_code": "nextplaid-code", "nextplaid_docs": "nextplaid-docs"}


class _Strict(yaml.SafeLoader):
    """YAML that refuses a key written twice."""


def _mapping(loader: _Strict, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping whose keys are all different."""
    keys = [loader.construct_object(k) for k, _ in node.value]
    assert len(keys) == len(set(keys)), f"duplicate key at {node.start_mark}"
    return loader.construct_mapping(node, deep=True)


_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def identity(path: Path) -> str:
    """`group/name`."""
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", IN_GROUPS, ids=identity)
def test_header_says_where_the_file_goes(path):
    """The package is the group's place, and an entry of a collection is named as its file."""
    group, header = path.parent.name, path.read_text().splitlines()[0]
    name = NAMED_OTHERWISE.get(path.stem, path.stem)
    assert header == "# @package " + (PLACES.get(group) or COLLECTIONS[group] + name)


@pytest.mark.parametrize("path", FILES, ids=identity)
def test_file_begins_with_a_comment_and_parses(path):
    """A file has a line of explanation, no duplicate key, no interpolation and no line too long to read."""
    lines = path.read_text().splitlines()
    assert lines[0 if path.parent == CONF else 1].startswith("# ")
    assert isinstance(yaml.load("\n".join(lines), Loader=_Strict), dict)  # noqa: S506 - a SafeLoader subclass
    assert "${" not in "\n".join(lines)
    assert all(len(line) <= 140 for line in lines if not line.startswith(("source:", "description:")))


def test_a_port_is_written_once():
    """Only the ports group gives servers and services their numbers."""
    for path in (CONF / "server").glob("*.yaml"):
        assert "port" not in yaml.safe_load(path.read_text()), path
