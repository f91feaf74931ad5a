"""What each compile in a worker would work out anew: the packaged config's YAML parsed, the templates compiled.

A process of `launch` does each once; hundreds of tests compile in one process. Only what is right is kept, so that
every finding is still made where it is looked for.
"""

from __future__ import annotations

from types import CodeType
from typing import Any

from jinja2 import Environment

from launcher.config import repository
from launcher.config.yamltree import YamlText, parse_yaml

_TEXTS: dict[tuple[str, str, str], YamlText] = {}
_TEMPLATES: dict[tuple[Any, ...], CodeType] = {}
_compile: Any = Environment.compile


def keep() -> None:
    """From now on, in this process."""
    repository.parse_yaml = _parsed
    Environment.compile = _compiled  # type: ignore[method-assign]


def _parsed(text: str, *, file: str, prefix: str) -> YamlText:
    """`parse_yaml`, whose callers may change what it gave them."""
    kept = _TEXTS.get((text, file, prefix))
    if kept is None:
        kept = parse_yaml(text, file=file, prefix=prefix)
        if kept.findings:
            return kept
        _TEXTS[text, file, prefix] = kept
    return YamlText(_copy(kept.tree), dict(kept.marks), ())


def _copy(value: Any) -> Any:
    """Mappings and lists anew; what is in them cannot be changed."""
    if type(value) is dict:
        return {key: _copy(item) for key, item in value.items()}
    if type(value) is list:
        return [_copy(item) for item in value]
    return value


def _compiled(self: Environment, source: Any, name: Any = None, filename: Any = None, *more: Any) -> Any:
    """`Environment.compile`, by all that its outcome depends on."""
    options = (
        self.finalize is None,
        self.trim_blocks,
        self.lstrip_blocks,
        self.keep_trailing_newline,
        self.undefined,
        self.autoescape,
    )
    key = (source, name, filename, more, options, *map(frozenset, (self.extensions, self.filters, self.tests)))
    if not isinstance(source, str):
        return _compile(self, source, name, filename, *more)
    if key not in _TEMPLATES:
        _TEMPLATES[key] = _compile(self, source, name, filename, *more)
    return _TEMPLATES[key]
