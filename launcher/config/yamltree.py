"""One YAML text → plain values with where each was written, or findings. Pure.

PyYAML's C parser composes nodes, and the nodes carry positions; we build the values ourselves because
PyYAML keeps the last of duplicate keys silently. Scalars mean what they mean to OmegaConf's loader
(YAML 1.1, floats such as 1e3, no timestamps), so that a file reads the same under plain Hydra.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec
import yaml

from launcher.config.located import joined
from launcher.errors import Finding, Location, fault

MAX_NODES = 100_000
"""Values that a small text may expand to, where aliases of aliases could multiply into billions; a longer text has as
many as it has characters at most, and so may be read whole."""

MAX_DEPTH = 200
"""Mappings and lists inside one another."""

_TAG = "tag:yaml.org,2002:"
_STR = _TAG + "str"
_MERGE = _TAG + "merge"
_SCALARS = {_TAG + name for name in ("str", "int", "float", "bool", "null")}
_FLOAT = re.compile(
    r"""^(?:
     [-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)
    |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
"""omegaconf._utils.get_yaml_loader's float: YAML 1.2's, which PyYAML lacks."""


@lru_cache(maxsize=4096)
def _tag_of(kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
    """The tag of an untagged node: of an unquoted scalar the first pattern's that fits, else a string's."""
    if kind is not yaml.ScalarNode:
        return _TAG + ("seq" if kind is yaml.SequenceNode else "map")
    for tag, pattern in _Loader.yaml_implicit_resolvers.get(value[:1], ()) if implicit[0] else ():
        if pattern.match(value):
            return str(tag)
    return _STR


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # a base chosen at run time
    """libyaml's parser with OmegaConf's rules for plain scalars; its composer asks `resolve` for every node."""

    resolve = staticmethod(_tag_of)


_Loader.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+0123456789."))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TAG + "timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}

_FOR_PEOPLE = re.compile(r"\w+(\.\w+)+: .*\S {2,}\S+:\d+(:\d+)?\n")
"""A line of `launch config`: a dotted key, its value and where it is written."""


class YamlText(msgspec.Struct, frozen=True):
    """Values of one file; `marks` maps each dotted key inside it to where its value was written."""

    tree: dict[str, Any]
    marks: dict[str, Location]
    findings: tuple[Finding, ...]


def parse_yaml(text: str, *, file: str, prefix: str) -> YamlText:
    """Read the YAML `text` of `file`; `prefix` is put before the dotted keys of findings.

    Findings: `config/yaml` (syntax, or values that a config cannot hold) and `config/duplicate-key`.
    After a syntax error the tree is empty.
    """
    builder = _Builder(file, prefix, max(MAX_NODES, len(text)))
    loader = None
    try:
        _refuse_depth(text)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return YamlText({}, {}, ())
        builder.loader = loader
        value = builder.value(node, "")
    except (yaml.YAMLError, ValueError) as error:
        builder.syntax(error, text)
        value = {}
    except RecursionError:
        builder.add("config/yaml", "", "not valid YAML: aliases lead to aliases too deeply", None)
        value = {}
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(value, dict):
        builder.add("config/yaml", "", "a config file must be a mapping of keys to values", node.start_mark)
        value = {}
    return YamlText(value, builder.marks, tuple(builder.findings))


def _unfit(problem: str, node: Any) -> yaml.MarkedYAMLError:
    """PyYAML's error for something at `node` that is YAML, but not for us."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _refuse_depth(text: str) -> None:
    """Raise YAMLError when values are nested deeper than `MAX_DEPTH`: libyaml's composer recurses in C."""
    if sum(text.count(opener) for opener in ("[", "{", "- ", "? ")) < MAX_DEPTH:
        return
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _unfit("values are nested too deeply", event)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Builder:
    def __init__(self, file: str, prefix: str, most: int) -> None:
        self.file = file
        self.prefix = prefix
        self.most = most
        self.loader: Any = None
        self.marks: dict[str, Location] = {}
        self.findings: list[Finding] = []
        self.open_nodes: set[int] = set()
        self.count = 0

    def at(self, mark: yaml.Mark) -> Location:
        """The mark as a location; marks count from 0, locations from 1."""
        return Location(file=self.file, line=mark.line + 1, column=mark.column + 1)

    def add(self, code: str, key: str, message: str, mark: yaml.Mark | None, *notes: str) -> None:
        """Note one error at `mark`, or at the start of the file."""
        location = Location(file=self.file, line=1) if mark is None else self.at(mark)
        dotted = ".".join(part for part in (self.prefix, key) if part)
        self.findings.append(
            fault(code, dotted, message, *(notes or ("correct the file at this place",)), location=location)
        )

    def syntax(self, error: Exception, text: str) -> None:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        position = getattr(error, "position", None)
        if mark is None and isinstance(position, int):
            before = text[:position]
            mark = yaml.Mark(self.file, position, before.count("\n"), position - before.rfind("\n") - 1, None, 0)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        context = getattr(error, "context", None)
        notes = (f"{context}, {problem}",) if context else ()
        line = "" if mark is None else "".join(text.splitlines()[mark.line : mark.line + 1])
        tabbed = "\t" in line[: len(line) - len(line.lstrip())]
        hint = "a tab cannot indent YAML: use spaces" if tabbed else "check indentation, quotes and brackets here"
        if _FOR_PEOPLE.match(text):
            hint = "this is what `launch config` shows to people; `launch config --yaml` writes a file"
        self.add("config/yaml", "", f"not valid YAML: {problem}", mark, *notes, hint)

    def value(self, node: yaml.Node, key: str) -> Any:
        """The plain value of `node`, written at dotted `key`."""
        self.visit(node)
        if isinstance(node, yaml.ScalarNode):
            self.marks.setdefault(key, self.at(node.start_mark))
            return self.scalar(node)
        if id(node) in self.open_nodes:
            raise _unfit("an alias contains itself", node)
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            raise _unfit(f"unsupported tag {node.tag}", node)
        self.marks.setdefault(key, self.at(node.start_mark))
        self.open_nodes.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, joined(key, i)) for i, item in enumerate(node.value)]
            return self.mapping(node, key)
        finally:
            self.open_nodes.discard(id(node))

    def visit(self, node: yaml.Node) -> None:
        """Count one more visit of a node: aliases and merges reach the same one often. Raises YAMLError."""
        self.count += 1
        if self.count > self.most:
            raise _unfit("aliases expand to too many values", node)

    def mapping(self, node: yaml.Node, key: str) -> dict[Any, Any]:
        """A mapping; keys written twice are findings, keys of `<<` give way to written ones."""
        tree: dict[Any, Any] = {}
        first: dict[Any, yaml.Mark] = {}
        merges = False
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merges = True
                continue
            name = self.name(key_node)
            dotted = joined(key, name)
            if name in first:
                self.add(
                    "config/duplicate-key",
                    dotted,
                    f"the key {name!r} is written twice in one mapping",
                    key_node.start_mark,
                    f"first written at {self.at(first[name])}; remove one of the two",
                )
                continue
            first[name] = key_node.start_mark
            # a container is where its key is: its own mark is the first thing inside it
            if not isinstance(value_node, yaml.ScalarNode):
                self.marks[dotted] = self.at(key_node.start_mark)
            tree[name] = self.value(value_node, dotted)
        for key_node, value_node in self.merged(node) if merges else ():
            name = self.name(key_node)
            if name not in tree:
                tree[name] = self.value(value_node, joined(key, name))
        return tree

    def merged(self, node: yaml.Node) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """The pairs that `<<` brings in, nearest first."""
        for key_node, value_node in node.value:
            self.visit(key_node)
            if key_node.tag != _MERGE:
                continue
            sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for source in sources:
                self.visit(source)
                if not isinstance(source, yaml.MappingNode) or id(source) in self.open_nodes:
                    raise _unfit("<< needs a mapping", key_node)
                self.open_nodes.add(id(source))
                yield from (pair for pair in source.value if pair[0].tag != _MERGE)
                yield from self.merged(source)
                self.open_nodes.discard(id(source))

    def name(self, node: yaml.Node) -> Any:
        """A mapping's key: a string, or a number or flag that YAML reads so."""
        if isinstance(node, yaml.ScalarNode):
            name = self.scalar(node)
            if name is not None:
                return name
        raise _unfit("a key must be a plain name", node)

    def scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag == _STR:
            return node.value
        if node.value.isdecimal() and node.value[0] != "0" and node.tag == _TAG + "int":
            return int(node.value)
        if node.tag not in _SCALARS:
            raise _unfit(f"unsupported tag {node.tag}", node)
        try:
            # PyYAML's own: octal, hexadecimal, sexagesimal, yes/no, .inf
            return self.loader.construct_object(node)
        except (ValueError, KeyError, IndexError) as error:
            problem = f"{node.value[:40]!r} does not fit its tag {node.tag.removeprefix(_TAG)}"
            raise _unfit(problem, node) from error
