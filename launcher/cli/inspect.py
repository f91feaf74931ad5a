"""`launch inspect FILE.gguf`: what a model file is, and what a server with given fields needs on this host."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher import hardware, plan
from launcher.author.text import declaration_text
from launcher.catalog.files import describe
from launcher.cli.findings import counted, printable, show_findings
from launcher.cli.plan_view import show_proof
from launcher.cli.terminal import Terminal, terminals
from launcher.discover.models import LATER_PART
from launcher.errors import CatalogError, ConfigError, PlanError
from launcher.ir.catalog import ModelFile
from launcher.ir.config import HardwareConfig
from launcher.ir.documents import InspectDocument
from launcher.proving import prove_file
from launcher.sizes import gib, parse_size


def inspect_files(words: Sequence[str], vram: Sequence[str], *, as_json: bool, prover: str | None = None) -> int:
    """Run `launch inspect`: read the headers of the files among `words`, apply the rest as server fields, show.

    `vram`: GPU sizes of another machine; none: this machine as it is. `prover`: the binary for a dry run ("": the
    embedded one); None: no dry run. Returns the first exit code that is not 0.
    """
    out, err = terminals()
    fields = [word for word in words if "=" in word and not Path(word).exists()]
    files = _files([word for word in words if word not in fields])
    host = _host(hardware.hardware_tree(hardware.take_inventory()), fields, vram)
    codes, documents = [], []
    for i, file in enumerate(files):
        if len(files) > 1 and not as_json:
            out.line(f"{'' if i == 0 else chr(10)}{out.style(printable(str(file)), 'bold')}")
        try:
            document, model = _inspected(file, fields, host, prover)
        except CatalogError as error:  # the others can still be shown
            if len(files) == 1:
                raise
            show_findings(err, error.findings)
            codes.append(error.exit_code)
            continue
        documents.append(document)
        if not as_json:
            _show(out, model, document, host)
            show_findings(err, document.findings)
        codes.append(PlanError.exit_code if any(f.severity == "error" for f in document.findings) else 0)
    if as_json:
        several = {"schema": "launch.inspections/v1", "files": documents}
        out.json(documents[0] if len(files) == 1 else several)
    return next((code for code in codes if code), 0)


def _host(tree: dict[str, Any], fields: list[str], vram: Sequence[str]) -> HardwareConfig:
    """This machine, or one with GPUs of these sizes; then `fields` use them unless they say otherwise.

    Raises ConfigError for fields of the hardware.
    """
    if any(re.match(r"hardware\b", field) for field in fields):
        message = "inspect takes fields of a server, as n_ctx=16384; the hardware is this machine's"
        note = "cards of another machine: --vram 24GiB, once for each"
        raise ConfigError.of("config/unknown-key", message, note, key="hardware")
    if vram:
        tree["gpus"] = {f"card{i}": {"backend": "cuda", "vram_bytes": _bytes(size)} for i, size in enumerate(vram)}
        if not any(field.startswith("devices=") for field in fields):
            fields.append(f"devices=[{','.join(tree['gpus'])}]")
            if not any(field.startswith("n_gpu_layers=") for field in fields):
                fields.append("n_gpu_layers=auto")
    return msgspec.convert(tree, HardwareConfig)


def declare_files(words: Sequence[str]) -> int:
    """Print the files among `words` as entries of `models:`. Returns the first exit code that is not 0."""
    out, err = terminals()
    models, codes = [], [0]
    for file in _files(words):
        try:
            models.append(describe(str(file.absolute())))
        except CatalogError as error:  # the others can still be written
            show_findings(err, error.findings)
            codes.append(error.exit_code)
    if models:
        out.write(declaration_text(models))
    return next((code for code in codes if code), 0)


def _files(words: Sequence[str]) -> list[Path]:
    """The model files that are named, those in folders sorted by name. Raises ConfigError if there are none."""
    files: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        found = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
        files += [f for f in found if not LATER_PART.search(f.name)] if path.is_dir() else found
    if not files:
        what = f"{', '.join(words)} has no GGUF files" if words else "inspect what?"
        note = "launch inspect FILE.gguf|DIR… [FIELD=VALUE]…"
        raise ConfigError.of("config/usage", what, note)
    return files


def _bytes(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise ConfigError.of("config/usage", f"--vram {text}: {error}") from None


def _inspected(
    file: Path, fields: list[str], host: HardwareConfig, prover: str | None
) -> tuple[InspectDocument, ModelFile]:
    """One file, and what a server with `fields` needs of `host`. Raises CatalogError, ConfigError."""
    from launcher.config.composing import server_from_fields

    model = describe(str(file))
    server = server_from_fields(fields)
    settled = plan.settle(server, model, host)
    if any(f.severity == "error" for f in settled.findings):
        raise ConfigError(settled.findings)
    memory = plan.estimate(model, settled.settings)
    proof, findings = None, (*settled.findings, *plan.unsized(model, memory))
    if prover is not None:
        proof, found = prove_file(model, server, host, binary=prover or None)
        findings += found
    document = InspectDocument(
        file=str(file),
        architecture=model.architecture.arch,
        parameters=model.n_params,
        tensors=len(model.tensors),
        file_bytes=model.file_bytes,
        context_length=model.architecture.n_ctx_train,
        n_ctx=settled.settings.n_ctx,
        n_ctx_per_slot=settled.settings.n_ctx_per_slot,
        memory=memory,
        findings=findings,
        proof=proof,
    )
    return document, model


def _show(out: Terminal, model: ModelFile, document: InspectDocument, host: HardwareConfig) -> None:
    arch, types = model.architecture, Counter(tensor.type for tensor in model.tensors)
    rows: list[tuple[str, Any]] = [
        ("architecture", arch.arch),
        ("parameters", f"{document.parameters / 1e9:.2f} B in {document.tensors} tensors"),
        ("file", f"{gib(document.file_bytes)} in {counted(len(model.parts), 'part')}"),
        ("types", ", ".join(f"{name} {count}" for name, count in types.most_common())),
        ("layers", arch.n_layer),
        ("embedding", arch.n_embd),
        ("heads", f"{arch.n_head}, K/V {arch.n_head_kv}"),
        ("vocabulary", f"{arch.n_vocab} ({arch.tokenizer})"),
        ("trained context", arch.n_ctx_train),
        ("context", f"{document.n_ctx}, {document.n_ctx_per_slot} a slot"),
    ]
    if arch.n_expert:
        rows.append(("experts", f"{arch.n_expert_used} of {arch.n_expert}"))
    for label, value in rows:
        out.line(f"{label:<16} {printable(str(value))}")
    out.line()
    for memory in document.memory:
        out.line(out.style(f"{memory.device}: {gib(memory.committed_bytes + memory.file_bytes)}", "bold"))
        for label, size in (
            ("model", memory.model_bytes),
            ("K/V", memory.kv_bytes),
            ("recurrent state", memory.recurrent_bytes),
            ("output", memory.output_bytes),
            ("compute", memory.compute_bytes),
            ("overhead", memory.overhead_bytes),
        ):
            if size:
                out.line(f"  {label:<16} {gib(size)}")
        out.line(
            f"  committed {gib(memory.committed_bytes)}, peak {gib(memory.peak_bytes)}, file-backed "
            f"{gib(memory.file_bytes)}, prompt cache may grow by {gib(memory.growth_bytes)}"
        )
        gpu = host.gpus.get(memory.device)
        size = int(gpu.vram_bytes * gpu.target_max) if gpu else host.ram_bytes - host.ram_reserve_bytes
        verdict = "fits" if memory.resident_peak_bytes <= size else out.style("does not fit", "red")
        out.line(f"  {verdict}: {gib(memory.resident_peak_bytes)} of {gib(size)}")
    if document.proof is not None:
        out.line()
        show_proof(out, document.proof)
