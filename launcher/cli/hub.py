"""Download models from the Hugging Face hub: `launch pull`, `launch add hf:…`. Resumed, verified, never partial. I/O.

The library finds the token itself: `HF_TOKEN`, or the file that `hf auth login` writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os.path
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher.author.edit import tree_of
from launcher.catalog import resolve_path, split_paths
from launcher.cli.findings import printable
from launcher.cli.terminal import Terminal, terminals
from launcher.compiler import compose_config
from launcher.errors import CatalogError, ConfigError, HostError, LaunchError
from launcher.files import writing
from launcher.sizes import gib

PREFERRED = ("Q4_K_M", "Q5_K_M", "Q4_K_S", "Q6_K", "Q8_0", "MXFP4", "F16", "BF16")
"""Quantizations that are taken if none is named, the preferred one first."""
RESERVE_BYTES = 1024**3
"""Bytes that are left free on the disk."""

_WHAT = re.compile(r"hf:([\w.-]+/[\w.-]+?)(?::([\w.-]+))?")
_CHUNK = 8 * 1024**2


def download(what: str, err: Terminal) -> list[Path]:
    """Download `hf:ORG/REPO[:QUANT]`. Returns the path of part 1 of the model; its projector lies beside it.

    Raises ConfigError, CatalogError (no such repository or quantization, a wrong checksum) or HostError (no network, no
    room, the library is not installed).
    """
    match = _WHAT.fullmatch(what)
    if match is None:
        message = f"{what!r} is not hf:ORG/REPO or hf:ORG/REPO:QUANT"
        raise ConfigError.of("author/usage", message, "launch add --help")
    repo, quantization = match[1], match[2]
    paths = _fetch(repo, lambda names: _files_of(repo, names, quantization), err)
    return [path for name, path in paths.items() if not _is_projector(name)][:1]


def download_files(repo: str, path: Path, names: Sequence[str], err: Terminal) -> None:
    """Download the files `names` of `repo`, from whichever folder there, into the folder of `path`.

    Raises as `download`. Files that exist are not fetched again, broken downloads are resumed.
    """

    def wanted(there: tuple[str, ...]) -> tuple[str, ...]:
        found = [next((n for n in there if n.rpartition("/")[2] == name), None) for name in names]
        if None in found:
            shown = ", ".join(sorted(there)[:12]) or "no GGUF files"
            message = f"{repo} has no {names[found.index(None)]}"
            note = "the file's name in `path` is the one that is looked for there"
            raise CatalogError.of("author/no-repository", message, f"it has {shown}", note)
        return tuple(name for name in found if name)

    for name, fetched in _fetch(repo, wanted, err, path.parent).items():
        place = path.parent / name.rpartition("/")[2]
        if fetched != place:
            with writing(place):
                fetched.replace(place)
            with contextlib.suppress(OSError):
                fetched.parent.rmdir()


def _fetch(
    repo: str, choose: Callable[[tuple[str, ...]], tuple[str, ...]], err: Terminal, folder: Path | None = None
) -> dict[str, Path]:
    """Download the GGUF files of `repo` that `choose` picks, into `folder` or the library's cache; name → path."""
    try:
        hub: Any = importlib.import_module("huggingface_hub")
        errors: Any = importlib.import_module("huggingface_hub.errors")
    except ImportError:
        note = f"{install_command('huggingface_hub')}; or download the file yourself and add that"
        raise HostError.of("author/no-hub", "huggingface_hub is not installed", note) from None
    try:
        info = hub.HfApi().model_info(repo, files_metadata=True)
        files = {f.rfilename: f for f in info.siblings or () if f.rfilename.endswith(".gguf")}
        wanted = choose(tuple(files))
        _require_room(folder or Path(hub.constants.HF_HUB_CACHE), [files[name] for name in wanted])
        err.line(f"{repo}: {printable(', '.join(wanted))}, {gib(sum(files[name].size or 0 for name in wanted))}")
        paths = [Path(hub.hf_hub_download(repo, name, revision=info.sha, local_dir=folder)) for name in wanted]
    except errors.RepositoryNotFoundError:
        note = "check its name; a private or gated one needs a token: HF_TOKEN, or `hf auth login`"
        raise CatalogError.of("author/no-repository", f"there is no model repository {repo}", note) from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        raise _unreached(repo, error) from None
    except Exception as error:
        if not type(error).__module__.startswith(("http", "requests")):  # whichever client the library brings
            raise
        raise _unreached(repo, error) from None
    for name, path in zip(wanted, paths, strict=True):
        _verify(path, getattr(files[name].lfs, "sha256", None))
    return dict(zip(wanted, paths, strict=True))


def _files_of(repo: str, names: tuple[str, ...], quantization: str | None) -> tuple[str, ...]:
    """The files to download. Raises CatalogError if it is not clear which, or if there are none."""
    wanted = choose_files(names, quantization)
    if not wanted:
        shown = ", ".join(sorted(n for n in names if not _is_projector(n))[:12]) or "no GGUF files"
        lacking = (
            f"GGUF file of quantization {quantization}" if quantization else "file that is plainly the one to take"
        )
        notes = (f"it has {shown}", f"write hf:{repo}:QUANT")
        raise CatalogError.of("author/no-repository", f"{repo} has no {lacking}", *notes)
    return wanted


def choose_files(names: Sequence[str], quantization: str | None) -> tuple[str, ...]:
    """The files to download: all parts of one quantization, and one projector beside it, F16 preferred. Pure."""
    models = sorted(name for name in names if not _is_projector(name))
    for wanted in (quantization,) if quantization else PREFERRED:
        word = re.compile(rf"(?:^|[-_./]){re.escape(wanted)}(?=[-./]|$)", re.IGNORECASE)
        found = [name for name in models if word.search(name.removesuffix(".gguf"))]
        if found:
            break
    else:
        found = models if len(models) == 1 and not quantization else []
    if not found:
        return ()
    first = re.sub(r"-\d{5}-of-\d{5}\.gguf$", "", found[0])
    parts = [name for name in found if re.sub(r"-\d{5}-of-\d{5}\.gguf$", "", name) == first]
    folder = found[0].rpartition("/")[0]
    projectors = sorted(name for name in names if _is_projector(name) and name.rpartition("/")[0] == folder)
    projectors.sort(key=lambda name: "f16" not in name.lower() or "bf16" in name.lower())
    return (*parts, *projectors[:1])


def _is_projector(name: str) -> bool:
    """Whether a file is a multimodal projector, by its name: the hub tells no more."""
    return "mmproj" in name.rpartition("/")[2].lower()


def _require_room(cache: Path, files: Sequence[Any]) -> None:
    """Raise HostError if the disk of the cache has no room for the files that are not in it yet."""
    place = cache
    while not place.exists() and place != place.parent:
        place = place.parent
    free, need = shutil.disk_usage(place).free, sum(f.size or 0 for f in files)
    there = sum(f.size or 0 for f in files if any(cache.glob(f"*/snapshots/*/{f.rfilename}")))
    if need - there + RESERVE_BYTES > free:
        note = "make room, or put the cache elsewhere: HF_HUB_CACHE=/big/disk"
        message = f"{cache}: {gib(need - there)} are to come, and {gib(free)} are free"
        raise HostError.of("author/no-room", message, note)


def _verify(path: Path, sha256: str | None) -> None:
    """Compare a file with the digest that the hub states; a wrong file is removed. Raises CatalogError."""
    if not sha256:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        message = f"{path.name} is not what the hub states: sha256 {digest.hexdigest()[:12]}…, not {sha256[:12]}…"
        raise CatalogError.of("author/checksum", message, "it was removed; run the command again")


def _unreached(repo: str, error: Exception) -> HostError:
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    notes = ("without a network, add a file that is here: launch add FILE.gguf", "HF_ENDPOINT names another hub")
    return HostError.of("author/offline", f"{repo} could not be fetched: {reason}", *notes)


def install_command(package: str) -> str:
    """The command that installs `package` beside launch: with pipx or uv if they made the environment, else pip."""
    made_here = Path(sys.prefix)
    if (made_here / "pipx_metadata.json").exists():
        return f"pipx inject launch-fleet {package}"
    if (made_here / "uv-receipt.toml").exists():
        return f"uv pip install --python {sys.executable} {package}"
    return f"{sys.executable} -m pip install {package}"


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """Files of one repository (all parts of a split one) that are not where the config expects them."""

    repo: str | None
    path: str
    names: tuple[str, ...]
    key: str


def pull_models(overrides: Sequence[str], config_dirs: Sequence[Path], *, dry_run: bool) -> int:
    """Run `launch pull`: download missing files, one after another. Raises LaunchError at the first that fails."""
    out, err = terminals()
    missing = list(_missing(*_entries(overrides, config_dirs)))
    known, unknown = [m for m in missing if m.repo], [m for m in missing if m.repo is None]
    for entry in known:
        out.line(f"{entry.path}  from {entry.repo}")
    for entry in unknown:
        out.line(f"{entry.path} is not here, and {entry.key} names no repo")
    if not missing:
        out.line("every model file that the config names is here")
    if dry_run:
        return 0
    for entry in known:
        download_files(entry.repo or "", Path(entry.path), entry.names, err)
        out.line(f"{entry.path} is here")
    if unknown:
        first, count = unknown[0], f"{len(unknown)} file{' has' if len(unknown) == 1 else 's have'}"
        note = f"write {first.key}.repo=ORG/REPO, the repository on Hugging Face that has {first.names[0]}"
        message = f"{count} no repo to be fetched from"
        raise ConfigError.of("author/no-repository", message, note, key=f"{first.key}.repo")
    return 0


class _WrittenFile(msgspec.Struct):
    path: str | None = None
    repo: str | None = None
    parts: int = 1


class _WrittenModel(msgspec.Struct):
    files: dict[str, _WrittenFile | str] = {}
    projector: _WrittenFile | str | None = None


_WrittenModels = dict[str, _WrittenModel | str]
"""`models:` as far as files are concerned; a text alone is a path, which has no repository."""


def _entries(overrides: Sequence[str], config_dirs: Sequence[Path]) -> tuple[_WrittenModels, set[str], str]:
    """Models as written, the names of those that servers load, and the folder that relative paths start from."""
    try:
        fleet = compose_config(overrides, config_dirs=config_dirs).fleet
    except LaunchError as error:
        if mistyped := [f for f in error.findings if f.code == "config/override"]:
            note = "a model that no config names yet is downloaded by: launch add hf:ORG/REPO"
            raise ConfigError([msgspec.structs.replace(f, notes=(*f.notes, note)) for f in mistyped]) from None
        # a fleet file's models may lack what only their files say, and these are what is to be fetched
        file = next((path for path in config_dirs if path.is_file()), None)
        try:
            tree = tree_of(file.read_text(encoding="utf-8")) if file is not None else {}
            models = msgspec.convert(tree.get("models"), _WrittenModels)
        except (OSError, ValueError):
            raise error from None
        return models, set(models), str(file.parent) if file is not None else ""
    drafts = {s.draft.model for s in fleet.servers.values() if s.draft is not None and s.draft.model}
    used = {s.model for s in fleet.servers.values()} | drafts
    return msgspec.convert(msgspec.to_builtins(fleet.models), _WrittenModels), used, fleet.hardware.model_dir


def _missing(models: _WrittenModels, used: set[str], folder: str) -> Iterator[Missing]:
    for name in sorted(used & set(models)):
        model = models[name]
        if isinstance(model, str):
            continue
        files = {f"files.{q}": file for q, file in model.files.items()}
        for key, entry in {**files, "projector": model.projector}.items():
            if not isinstance(entry, _WrittenFile) or entry.path is None:
                continue
            path = resolve_path(os.path.expanduser(os.path.expandvars(entry.path)), folder)  # noqa: PTH111
            parts = (split_paths(path) if entry.parts > 1 else None) or (path,)
            absent = tuple(os.path.basename(p) for p in parts if not os.path.lexists(p))  # noqa: PTH119
            if absent:
                yield Missing(repo=entry.repo, path=path, names=absent, key=f"models.{name}.{key}")
