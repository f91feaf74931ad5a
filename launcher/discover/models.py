"""Find model files where other programs keep theirs, and in folders that the user names. I/O."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from launcher.author.pairing import ModelOnDisk
from launcher.base.decoding import UNREADABLE
from launcher.errors import CatalogError, Finding, fault
from launcher.ir.catalog import ReadHeader

MAX_DEPTH = 8
"""How many folders deep the search goes; the Hugging Face cache has models four deep."""

_NOT_IN_FLEET = "models there are not in the fleet; make it readable, or name other folders with --models DIR"
_OLLAMA_MODEL_LEFT_OUT = "the Ollama model that it describes is not in the fleet"
_MODEL, _PROJECTOR = "application/vnd.ollama.image.model", "application/vnd.ollama.image.projector"
LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
"""Of a split model, a part that is read with its first."""


class ModelPlace(NamedTuple):
    """A folder with models, and whose it is."""

    kind: str
    path: Path


class FoundModels(msgspec.Struct, frozen=True, kw_only=True):
    """What was found: model files in order of their paths, warnings about what could not be read, places looked at."""

    files: tuple[ModelOnDisk, ...]
    findings: tuple[Finding, ...]
    places: tuple[ModelPlace, ...]


def usual_places(env: Mapping[str, str]) -> tuple[ModelPlace, ...]:
    """Where llama.cpp, Hugging Face, LM Studio and Ollama keep models, whether the folders exist or not."""
    home = Path(env.get("HOME") or Path.home())
    cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache")
    hub = env.get("HF_HUB_CACHE") or (f"{env['HF_HOME']}/hub" if env.get("HF_HOME") else cache / "huggingface/hub")
    return (
        ModelPlace("Hugging Face cache", Path(hub)),
        ModelPlace("llama.cpp cache", Path(env.get("LLAMA_CACHE") or cache / "llama.cpp")),
        ModelPlace("LM Studio", home / ".lmstudio/models"),
        ModelPlace("LM Studio", home / ".cache/lm-studio/models"),
        ModelPlace("Ollama", Path(env.get("OLLAMA_MODELS") or home / ".ollama/models")),
        ModelPlace("Ollama", Path("/usr/share/ollama/.ollama/models")),
    )


def find_models(
    named: Sequence[Path], usual: Sequence[ModelPlace], read: ReadHeader, *, depth: int = MAX_DEPTH
) -> FoundModels:
    """Every model file below `named` and the `usual` places that exist, `depth` folders deep, each file once.

    Raises nothing: a named folder that is missing, one that may not be listed, and a file that is no model become
    warnings in `findings`.
    """
    findings: list[Finding] = []
    files: dict[tuple[int, int], ModelOnDisk] = {}
    asked = [ModelPlace("models", plain_path(path)) for path in named]
    places = [place for place in asked if _is_there(place, findings, asked=True)]
    places += [place for place in usual if _is_there(place, findings, asked=False)]
    for place in places:
        for path, name, projector in _candidates(place, depth, findings):
            if not _can_stand_in_config(path):
                why = "such a name cannot stand in a config file (no UTF-8, or a ${ in it)"
                findings.append(_unreadable(path, why, "rename it, or make a link with a plainer name to it"))
                continue
            try:
                found = os.stat(path)  # noqa: PTH116 - paths are strings here
                facts = read(path, "")
            except OSError as error:
                findings.append(_unreadable(path, error, _NOT_IN_FLEET))
                continue
            except CatalogError as error:
                findings += (msgspec.structs.replace(f, severity="warning") for f in error.findings)
                continue
            file = ModelOnDisk(path=path, name=name, place=place.kind, facts=facts, projector=projector)
            files.setdefault((found.st_dev, found.st_ino), file)
    return FoundModels(files=tuple(files.values()), findings=tuple(findings), places=tuple(places))


def plain_path(path: Path) -> Path:
    """`path` made absolute and without `..`; a link to a file stays one, folders are resolved only if `..` needs it."""
    if ".." not in path.parts:
        return path.absolute()
    return path.resolve() if path.is_dir() or path.name == ".." else path.parent.resolve() / path.name


def _candidates(place: ModelPlace, depth: int, findings: list[Finding]) -> Iterator[tuple[str, str, str | None]]:
    """(path, name, projector) of every file in a place that may be a model."""
    if place.kind == "Ollama":
        yield from _ollama_models(place.path, findings)
        return
    if not place.path.is_dir():
        yield str(place.path.absolute()), place.path.name.removesuffix(".gguf"), None
        return
    for path in _walk(str(place.path.absolute()), depth, findings, top=True):
        yield path, os.path.basename(path).removesuffix(".gguf"), None  # noqa: PTH119 - as above


def _walk(folder: str, depth: int, findings: list[Finding], *, top: bool = False) -> Iterator[str]:
    """Paths of GGUF files below `folder`, sorted; of split files only part 1.

    Links to files are followed, links to folders only at the `top`.
    """
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda e: e.name)
    except OSError as error:
        findings.append(_unreadable(folder, error, _NOT_IN_FLEET))
        return
    for entry in entries:
        if _is_folder(entry, follow=top):
            if depth > 1 and not entry.name.startswith("."):
                yield from _walk(entry.path, depth - 1, findings)
        elif entry.name.endswith(".gguf") and not LATER_PART.search(entry.name):
            yield entry.path


def _is_there(place: ModelPlace, findings: list[Finding], *, asked: bool) -> bool:
    """Whether a place exists. A missing one becomes a finding if the user `asked` for it, an unreachable one always."""
    try:
        found = os.stat(place.path)  # noqa: PTH116 - as above
    except OSError as error:
        absent = error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
        if asked and absent:
            note = "look at how it is spelled, and whether its disk is mounted; models elsewhere: --models DIR"
            findings.append(_unreadable(place.path, "there is no such file or folder", note))
        elif not absent:
            findings.append(_unreadable(place.path, error, _NOT_IN_FLEET))
        return False
    return asked or stat.S_ISDIR(found.st_mode)


def _is_folder(entry: os.DirEntry[str], *, follow: bool) -> bool:
    """Whether an entry is a folder; False for a link in a circle, or into a folder that may not be read."""
    try:
        return entry.is_dir(follow_symlinks=follow)
    except OSError:
        return False


def _can_stand_in_config(path: str) -> bool:
    """Whether a path can be written in a config file: it is text, without `${`, which config would replace."""
    return "${" not in path and not any("\ud800" <= c <= "\udfff" for c in path)


class _ManifestLayer(msgspec.Struct):
    digest: str
    media_type: str = msgspec.field(name="mediaType", default="")


class _Manifest(msgspec.Struct):
    layers: list[_ManifestLayer] = []


def _ollama_models(root: Path, findings: list[Finding]) -> Iterator[tuple[str, str, str | None]]:
    """(path, name, projector's path) of each model in Ollama's store at `root`; what cannot be read is a finding.

    Its manifests name blobs by their digest; a GGUF file there has no name of its own. Source: ollama docs and
    server/modelpath.go: `manifests/HOST/NAMESPACE/MODEL/TAG`, `blobs/sha256-…`.
    """
    try:
        manifests = sorted(p for p in (root / "manifests").rglob("*") if p.is_file())
    except OSError as error:
        findings.append(_unreadable(root, error, _OLLAMA_MODEL_LEFT_OUT))
        return
    for path in manifests:
        try:
            layers = msgspec.json.decode(path.read_bytes(), type=_Manifest).layers
        except (OSError, *UNREADABLE) as error:
            findings.append(_unreadable(path, str(error), _OLLAMA_MODEL_LEFT_OUT))
            continue
        blobs = {layer.media_type: _blob(root, layer.digest) for layer in layers}
        if _MODEL in blobs:
            tag = "" if path.name == "latest" else f"-{path.name}"
            projector = blobs.get(_PROJECTOR)
            yield str(blobs[_MODEL]), f"{path.parent.name}{tag}", str(projector) if projector else None


def _blob(root: Path, digest: str) -> Path:
    return root.absolute() / "blobs" / digest.replace(":", "-", 1).replace("/", "_")


def _unreadable(path: Path | str, why: OSError | str, note: str) -> Finding:
    """A place, or a file, that could not be read; `note`: what that means, or what to do."""
    reason = why if isinstance(why, str) else why.strerror or str(why)
    return fault("author/unreadable", "", f"{path}: {reason}", note, severity="warning")
