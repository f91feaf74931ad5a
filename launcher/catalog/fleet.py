"""From a fleet's config to its catalogue: every model file that it names, read or declared, and sizes on disk. I/O."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from launcher.catalog.declared import compare, declared_file, with_human_knowledge
from launcher.catalog.locate import PACKAGE_SCHEME, resolve_path, split_paths
from launcher.catalog.mix import MIXES, Mix, find_mix
from launcher.errors import CatalogError, Finding, fault
from launcher.ir.catalog import AdapterFile, Catalog, HeaderFacts, ModelFile, ProjectorFile, StoredFile
from launcher.ir.config import FleetConfig, LoraConfig, ModelConfig, ProjectorConfig


def vault(fleet: FleetConfig, catalog: Catalog) -> tuple[StoredFile, ...]:
    """The files of all models that servers, drafts and rungs name, in all quantizations, and projectors; each once.

    Files inside packages are not among them, nor what cannot be sized. A file at hand has its own size, another what
    is published, else what the declared architecture makes.
    """
    return tuple({file.path: file for file in _files(fleet, catalog)}.values())


def _files(fleet: FleetConfig, catalog: Catalog) -> Iterator[StoredFile]:
    drafts = (s.draft.model for s in fleet.servers.values() if s.draft is not None and s.draft.model)
    for name in dict.fromkeys((*(s.model for s in fleet.servers.values()), *drafts)):
        model = fleet.models.get(name)
        if model is None:
            continue
        for quantization, entry in model.files.items():
            known = catalog.get(name, quantization)
            path = _place(entry.path, fleet)
            if path and (size := _size(path, fleet, name, quantization, known)):
                yield _stored(path, f"models.{name}.files.{quantization}", size, used=known is not None)
        if model.projector is not None and (path := _place(model.projector.path, fleet)):
            size = _there((path,)) or model.projector.bytes or 0
            if size:
                yield _stored(path, f"models.{name}.projector", size, used=True)


def _stored(path: str, key: str, size: int, *, used: bool) -> StoredFile:
    here = os.path.exists(path)  # noqa: PTH110 - what may not be looked at is not here; pathlib raises
    return StoredFile(path=path, key=key, bytes=size, here=here, used=used)


def _place(path: str, fleet: FleetConfig) -> str:
    """The path of a file; "" for one inside a package, or for none."""
    if path.startswith(PACKAGE_SCHEME):
        return ""
    try:
        return resolve_path(path, fleet.hardware.model_dir)
    except CatalogError:
        return ""


def _size(path: str, fleet: FleetConfig, name: str, quantization: str, known: ModelFile | None) -> int:
    """Bytes of a model's file with all its parts; 0 where unknown."""
    entry = fleet.models[name].files[quantization]
    if there := _there(split_paths(path) or (path,)):
        return there
    if known is not None:
        return known.file_bytes
    mix = find_mix(_mix_name(fleet, quantization))
    if entry.bytes or mix is None:
        return entry.bytes or 0
    made, _ = declared_file(fleet.models[name], name, quantization, mix, path)
    return made.file_bytes if made else 0


def _there(paths: tuple[str, ...]) -> int:
    """Bytes of files that are all at hand, else 0."""
    try:
        return sum(Path(path).stat().st_size for path in paths)
    except OSError:
        return 0


def _mix_name(fleet: FleetConfig, quantization: str) -> str:
    config = fleet.quantizations.get(quantization)
    return config.mix if config else quantization


_NOTHING_KEPT: Mapping[str, HeaderFacts] = MappingProxyType({})

Use = tuple[str, str, str]
"""A model, a quantization, and the config key that asks for them."""


def build(
    fleet: FleetConfig, *, kept: Mapping[str, HeaderFacts] = _NOTHING_KEPT
) -> tuple[Catalog, tuple[Finding, ...]]:
    """The catalogue of a fleet, and every finding about it, errors included; raises nothing.

    A file that exists is read and overrules what is declared; one that does not is made from the declaration,
    or is as `kept` has it, which are headers by the path of the file, read where it was.
    Entries with an error are left out. `launcher.errors.has_errors` says whether to go on.
    """
    files: dict[str, ModelFile] = {}
    projectors: dict[str, ProjectorFile] = {}
    findings: list[Finding] = []
    uses: dict[tuple[str, str], str] = {}
    for model, quantization, key in _uses(fleet):
        uses.setdefault((model, quantization), key)
    for (model, quantization), key in uses.items():
        file, found = _model_file(fleet, model, quantization, key, kept)
        findings += found
        if file is not None:
            files[file.entry] = file
    for model in sorted({s.model for s in fleet.servers.values() if s.projector}):
        config = fleet.models.get(model)
        if config is not None:
            widths = (f.architecture.n_embd for f in files.values() if f.model == model)
            n_embd = next(widths, config.architecture.n_embd)
            projector, found = projector_file(config, model, fleet.hardware.model_dir, n_embd, kept)
            findings += found
            if projector is not None:
                projectors[model] = projector
    catalog = Catalog(files=files, projectors=projectors, adapters=_adapters(fleet, findings))
    if fleet.hardware.model_disk_bytes is not None:
        catalog = msgspec.structs.replace(catalog, vault=vault(fleet, catalog))
    return catalog, tuple(dict.fromkeys(findings))


def _adapters(fleet: FleetConfig, findings: list[Finding]) -> dict[str, AdapterFile]:
    adapters: dict[str, AdapterFile] = {}
    for name, server in sorted(fleet.servers.items()):
        for position, lora in enumerate(server.lora):
            adapter, found = adapter_file(lora, fleet.hardware.model_dir, f"servers.{name}.lora.{position}")
            findings += found
            if adapter is not None:
                adapters[lora.path] = adapter
    return adapters


def _uses(fleet: FleetConfig) -> Iterator[Use]:
    """Every (model, quantization) that the fleet may load, with the key that names it."""
    for name, server in sorted(fleet.servers.items()):
        yield server.model, server.quantization, f"servers.{name}"
        if server.draft is not None and server.draft.file is not None:
            yield *server.draft.file, f"servers.{name}.draft"
        if "quantization" in server.fill and server.model in fleet.models:
            for quantization in fleet.models[server.model].files:
                yield server.model, quantization, f"servers.{name}"
    yield from _ladder(fleet)


def _ladder(fleet: FleetConfig) -> Iterator[Use]:
    """Models that the rungs of the out-of-memory ladder load. A rung without a server is for every able worker."""
    if fleet.orchestration is None:
        return
    for i, rung in enumerate(fleet.orchestration.oom_ladder):
        key = f"orchestration.oom_ladder.{i}"
        for name in (rung.server,) if rung.server else fleet.orchestration.workers:
            server = fleet.servers.get(name)
            config = fleet.models.get(server.model) if server else None
            if server is None or config is None or not rung.quantization:
                continue
            if rung.server or rung.quantization in config.files:
                yield server.model, rung.quantization, key


def _model_file(
    fleet: FleetConfig, model: str, quantization: str, key: str, kept: Mapping[str, HeaderFacts]
) -> tuple[ModelFile | None, tuple[Finding, ...]]:
    config = fleet.models.get(model)
    if config is None:
        return None, (_dangling("model", model, f"{key}.model", fleet.models),)
    entry = config.files.get(quantization)
    if entry is None:
        return None, (_dangling("quantization", quantization, f"{key}.quantization", config.files, f" of {model}"),)
    path_key = f"models.{model}.files.{quantization}.path"
    try:
        path = resolve_path(entry.path, fleet.hardware.model_dir, key=path_key)
        if os.path.lexists(path):
            return _read(fleet, model, quantization, path)
    except CatalogError as error:
        return None, error.findings
    if path in kept:
        return msgspec.structs.replace(kept[path].file, model=model, quantization=quantization), ()
    mix, doubts = _mix(fleet, quantization)
    if mix is None:
        return None, doubts
    file, found = declared_file(config, model, quantization, mix, path)
    return file, doubts + tuple(_looked_for(f, path) for f in found)


def _looked_for(finding: Finding, path: str) -> Finding:
    """What a declaration lacks, with the path of the absent file: it may be mistyped."""
    if finding.code != "catalog/incomplete-architecture":
        return finding
    return msgspec.structs.replace(finding, notes=(*finding.notes, f"the file was looked for at {path!r}"))


def _read(fleet: FleetConfig, model: str, quantization: str, path: str) -> tuple[ModelFile | None, tuple[Finding, ...]]:
    from launcher.catalog.files import file_mix, load_model  # noqa: PLC0415 - only a file at hand is read

    config, key = fleet.models[model], f"models.{model}.files.{quantization}.path"
    file, header = load_model(path, model=model, quantization=quantization, key=key)
    if file.architecture.arch == "clip":
        message = f"{path!r} is a multimodal projector, not a model"
        return None, (fault("catalog/not-a-model", key, message),)
    findings = compare(config, file, quantization, file_mix(header), _mix_name(fleet, quantization))
    return with_human_knowledge(file, config.architecture), findings


def _mix(fleet: FleetConfig, quantization: str) -> tuple[Mix | None, tuple[Finding, ...]]:
    """The mix of a quantization; for one that llama.cpp does not have, all in the declared type, with a warning."""
    name = _mix_name(fleet, quantization)
    mix = find_mix(name)
    if mix is not None:
        return mix, ()
    config = fleet.quantizations.get(quantization)
    base = find_mix(config.default_type) if config else None
    near = difflib.get_close_matches(name.upper(), MIXES, 1)
    finding = fault(
        "catalog/unknown-mix",
        f"quantizations.{quantization}.mix",
        f"llama.cpp has no quantization mix {name!r}"
        + (f"; its tensors are taken as {base.base}, as default_type says" if base else ""),
        *((f"did you mean {near[0]}?",) if near else (f"there are {', '.join(MIXES)}",)),
        severity="error" if base is None else "warning",
    )
    return base, (finding,)


def _dangling(kind: str, name: str, key: str, known: Mapping[str, object], of: str = "") -> Finding:
    near = difflib.get_close_matches(name, known, 1)
    message = f"there is no {kind} {name!r}{of}"
    notes = (f"did you mean {near[0]!r}?",) if near else (f"there are {', '.join(sorted(known)) or 'none'}",)
    return fault(f"catalog/unknown-{kind}", key, message, *notes)


def projector_file(
    config: ModelConfig, model: str, model_dir: str, n_embd: int, kept: Mapping[str, HeaderFacts] = _NOTHING_KEPT
) -> tuple[ProjectorFile | None, tuple[Finding, ...]]:
    """The projector of a model of width `n_embd`, with its findings; None when it cannot be sized.

    Absent files count as `kept` has them, or with their declared size; without one: `catalog/projector-size-unknown`.
    """
    entry, key = config.projector, f"models.{model}.projector"
    if entry is None:
        return None, ()
    try:
        path = resolve_path(entry.path, model_dir, key=f"{key}.path")
        if os.path.lexists(path):
            return _read_projector(entry, model, path, n_embd)
    except CatalogError as error:
        return None, error.findings
    if entry.bytes is None:
        message = f"the projector of {model} is not at {path!r} and declares no size"
        notes = (f"is the path right? {key}.path", f"to plan where the file is not, write its size: {key}.bytes=…")
        return None, (fault("catalog/projector-size-unknown", key, message, *notes),)
    facts = kept.get(path)
    file = ProjectorFile(
        model=model,
        path=path,
        tensor_bytes=entry.bytes,
        compute_bytes=entry.compute_bytes,
        source="declared",
        modalities=(facts.modalities if facts else ()) or ("image",),
        encoder=facts.encoder if facts else None,
    )
    return file, ()


def _read_projector(
    entry: ProjectorConfig, model: str, path: str, n_embd: int
) -> tuple[ProjectorFile | None, tuple[Finding, ...]]:
    """A projector at hand: it must be one, and fit the model's width."""
    from launcher.catalog.files import read_header  # noqa: PLC0415 - only a file at hand is read
    from launcher.catalog.projector import image_encoder, modalities, projected_widths  # noqa: PLC0415 - as above

    key = f"models.{model}.projector.path"
    header = read_header(path, key=key)
    arch = header.values.get("general.architecture")
    if arch != "clip":
        message = f"{path!r} is a model of architecture {arch!r}, not a multimodal projector"
        return None, (fault("catalog/projector-mismatch", key, message),)
    widths = projected_widths(header)
    findings: tuple[Finding, ...] = ()
    if widths and n_embd not in widths:
        message = f"{path!r} projects to {'/'.join(map(str, widths))} dimensions, but {model} has {n_embd}"
        findings = (fault("catalog/projector-mismatch", key, message, "llama-server refuses this pair"),)
    file = ProjectorFile(
        model=model,
        path=path,
        tensor_bytes=sum(t.size_bytes for t in header.tensors),
        compute_bytes=entry.compute_bytes,
        source="gguf",
        modalities=modalities(header) or ("image",),
        encoder=image_encoder(header),
    )
    return file, findings


def adapter_file(entry: LoraConfig, model_dir: str, key: str) -> tuple[AdapterFile | None, tuple[Finding, ...]]:
    """The adapter at `entry`, with its findings; None when it cannot be sized.

    Findings: `catalog/adapter-size-unknown`, `catalog/not-an-adapter`, and those of headers.
    """
    try:
        path = resolve_path(entry.path, model_dir, key=f"{key}.path")
        if not os.path.lexists(path):
            if entry.bytes is not None:
                return AdapterFile(path=path, tensor_bytes=entry.bytes), ()
            message = f"the adapter is not at {path!r} and declares no size"
            return None, (fault("catalog/adapter-size-unknown", key, message, f"write its size: {key}.bytes=…"),)
        from launcher.catalog.files import read_header  # noqa: PLC0415 - as above

        header = read_header(path, key=f"{key}.path")
    except CatalogError as error:
        return None, error.findings
    if header.values.get("general.type") != "adapter":
        message = f"{path!r} is no LoRA adapter: its general.type is {header.values.get('general.type')!r}"
        return None, (fault("catalog/not-an-adapter", f"{key}.path", message),)
    return AdapterFile(path=path, tensor_bytes=sum(t.size_bytes for t in header.tensors)), ()
