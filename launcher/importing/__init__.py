"""Translates what people have into a fleet file: llama-swap, router presets, scripts, units, compose files. Pure.

In: a text, its name, the flags of a build. Out: `Imported`: servers as they would be written, and a finding for each
thing that has no equal here. docs/import.md is the table of what becomes what.
"""

from launcher.importing.formats import FORMATS, format_of, translate
from launcher.importing.result import Imported, imported_text

__all__ = ["FORMATS", "Imported", "format_of", "imported_text", "translate"]
