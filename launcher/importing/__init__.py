"""Translate existing setups into a fleet file: llama-swap, router presets, scripts, units, compose files. Pure.

In: a text, its name, the flags of a build. Out: `Imported`: servers as they would be written, and a finding for each
setting without an equivalent here. docs/import.md is the table of all translations.
"""

from launcher.importing.formats import FORMATS, format_of, translate
from launcher.importing.result import Imported, imported_text

__all__ = ["FORMATS", "Imported", "format_of", "imported_text", "translate"]
