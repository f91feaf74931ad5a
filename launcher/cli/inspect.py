"""`launch inspect FILE.gguf`: what a model file is, and what a server with given fields needs on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from launcher.cli.build import print_json
from launcher.cli.findings import show_findings
from launcher.cli.terminal import Terminal, terminals
from launcher.errors import ConfigError, PlanError
from launcher.ir.catalog import ModelFile
from launcher.ir.config import HardwareConfig
from launcher.ir.documents import InspectDocument
from launcher.sizes import gib


def inspect_file(file: Path, fields: list[str], *, as_json: bool, no_color: bool, prover: str | None = None) -> int:
    """Reads the header of `file`, applies `fields` (server fields as overrides) and prints or dumps the result.

    `prover`: the binary that proves it by its dry run, empty for the embedded one; None = no proof.
    """
    from launcher import catalog, config, plan
    from launcher.hardware import hardware_tree, take_inventory

    out, err = terminals(no_color=no_color)
    model = catalog.describe(str(file))
    server = config.server_from_fields(fields)
    host = msgspec.convert(hardware_tree(take_inventory()), HardwareConfig)
    settled = plan.settle(server, model, host)
    if any(f.severity == "error" for f in settled.findings):
        raise ConfigError(settled.findings)
    memory = plan.estimate(model, settled.settings)
    proof, findings = None, (*settled.findings, *plan.unsized(model, memory))
    if prover is not None:
        from launcher.proving import prove_file

        proof, found = prove_file(model, server, host, binary=prover or None)
        findings += found
    document = InspectDocument(
        file=str(file),
        architecture=model.architecture.arch,
        parameters=sum(_elements(t.shape) for t in model.tensors),
        tensors=len(model.tensors),
        file_bytes=model.file_bytes,
        context_length=model.architecture.n_ctx_train,
        n_ctx=settled.settings.n_ctx,
        n_ctx_per_slot=settled.settings.n_ctx_per_slot,
        memory=memory,
        findings=findings,
        proof=proof,
    )
    if as_json:
        print_json(out, document)
    else:
        _show(out, model, document)
        if proof is not None:
            from launcher.cli.prove_view import show_proof

            out.line()
            show_proof(out, proof)
        show_findings(err, findings)
    return PlanError.exit_code if any(f.severity == "error" for f in findings) else 0


def _elements(shape: tuple[int, ...]) -> int:
    """Product of `shape`."""
    count = 1
    for size in shape:
        count *= size
    return count


def _show(out: Terminal, model: ModelFile, document: InspectDocument) -> None:
    """The document for people."""
    arch = model.architecture
    rows: list[tuple[str, Any]] = [
        ("architecture", arch.arch),
        ("parameters", f"{document.parameters / 1e9:.2f} B in {document.tensors} tensors"),
        ("file", f"{gib(document.file_bytes)} in {len(model.parts)} part{'s' if len(model.parts) > 1 else ''}"),
        ("types", ", ".join(f"{name} {count}" for name, count in _types(model))),
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
        out.line(f"{label:<16} {value}")
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


def _types(model: ModelFile) -> list[tuple[str, int]]:
    """Tensor types and how many tensors have each, most first."""
    counts: dict[str, int] = {}
    for tensor in model.tensors:
        counts[tensor.type] = counts.get(tensor.type, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])
