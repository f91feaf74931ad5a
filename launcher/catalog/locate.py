"""From the path that the catalogue writes to one that can be opened. I/O: finds packages."""

from __future__ import annotations

import difflib
import importlib.util
import os.path
import re

from launcher.errors import CatalogError

PACKAGE_SCHEME = "pkg://"
_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def resolve_path(path: str, model_dir: str, *, key: str = "") -> str:
    """The path of a model file: `pkg://package/file` in a package, absolute as is, else under `model_dir`.

    The package is found without importing it; whether the file exists is not asked. Raises CatalogError at `key`:
    `catalog/missing-package` when the package is not installed, `catalog/unreadable` when no file can have this path.
    """
    if not path or "\0" in path:
        raise CatalogError.of("catalog/unreadable", f"{path!r} cannot be a file's path", key=key)
    if not path.startswith(PACKAGE_SCHEME):
        return os.path.join(model_dir, path)  # noqa: PTH118 - a string is wanted, and "./x" kept as it was written
    package, _, inside = path.removeprefix(PACKAGE_SCHEME).partition("/")
    folder = _package_folder(package)
    if folder is None or not inside:
        raise _no_package(path, package, inside, key)
    return os.path.join(folder, inside)  # noqa: PTH118 - as above


def _package_folder(package: str) -> str | None:
    """The folder of an installed top-level package; None if there is none."""
    if not package.isidentifier():
        return None
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(iter(spec.submodule_search_locations), None)


def _no_package(path: str, package: str, inside: str, key: str) -> CatalogError:
    if not inside:
        message, near = f"{path!r} names no file; write pkg://package/file", []
    else:
        message = f"the Python package {package!r} of {path!r} is not installed"
        from importlib.metadata import packages_distributions  # noqa: PLC0415 - slow, and only an error needs it

        near = difflib.get_close_matches(package, packages_distributions(), 1)
    hint = (f"did you mean {near[0]!r}?",) if near else ()
    installs = "`make embedded` installs the embedded engine and model"
    return CatalogError.of("catalog/missing-package", message, *hint, installs, key=key)


def split_paths(path: str) -> tuple[str, ...] | None:
    """Every part of a split model named `…-0000i-of-0000N.gguf`, in order; None when the name is not of that form.

    Source: llama.cpp `llama_split_path`.
    """
    match = _SPLIT.fullmatch(path)
    if match is None or int(match["count"]) < 1:
        return None
    return tuple(f"{match['stem']}-{i:05}-of-{match['count']}.gguf" for i in range(1, int(match["count"]) + 1))
