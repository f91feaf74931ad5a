"""Templates filled in: what is quoted for a unit before it comes here, and may not end its line all the same. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from launcher.errors import Finding
from launcher.ir.deployment import RenderedFile
from launcher.render.quoting import refused_value


class Pages:
    """Files from `templates` (text by path); `always` are values that all of them know. Undefined names are errors."""

    def __init__(self, templates: Mapping[str, str], always: Mapping[str, str]) -> None:
        self.spoilt: list[Finding] = []
        """Of values that would have ended their line, and were left out."""
        self._always = always
        self._units = Environment(
            finalize=self._one_line,
            loader=DictLoader(dict(templates)),
            undefined=StrictUndefined,
            autoescape=False,  # noqa: S701 # units and scripts, not HTML
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._scripts = self._units.overlay(finalize=None)

    def file(self, path: str, template: str, values: Mapping[str, Any], *, script: bool = False) -> RenderedFile:
        """The file at `path` from `template`. A `script` is executable, and quotes line breaks itself."""
        found = (self._scripts if script else self._units).get_template(template)
        return RenderedFile(path=path, text=found.render({**self._always, **values}), executable=script)

    def _one_line(self, value: Any) -> Any:
        if isinstance(value, str) and (finding := refused_value(value)) is not None:
            self.spoilt.append(finding)
            return ""
        return value
