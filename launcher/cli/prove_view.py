"""`--prove` for people: predicted beside proven, a row a component."""

from __future__ import annotations

from launcher.cli.terminal import Terminal
from launcher.ir.proof import Difference, Proof, ServerProof
from launcher.plan import is_mismatch
from launcher.sizes import MIB

_NUMBERS = frozenset({3, 4, 5})


def show_proof(terminal: Terminal, proof: Proof) -> None:
    """The table, and with what it was made."""
    header = ("PROOF", "DEVICE", "COMPONENT", "PREDICTED", "PROVEN", "OVER", "")
    rows = [row for server in proof.servers for row in _rows(server)]
    terminal.table(header, rows, right=_NUMBERS)
    terminal.line()
    features = ", ".join(proof.features) or "no extra instructions"
    terminal.line(f"MiB, by {proof.binary} ({proof.version.removeprefix('version: ')})")
    terminal.line(f"both columns are for this machine's CPU ({features}); compute is never under, the rest is exact")
    stood = sorted({device for server in proof.servers for device in server.stand_ins})
    if stood:
        terminal.line(f"not on this machine, an RPC server stood in: {', '.join(stood)}")


def _rows(server: ServerProof) -> list[tuple[str, ...]]:
    """One server's rows; its name on the first."""
    if server.failure is not None:
        return [(server.name, "", "not proven", "", "", "", "see findings")]
    names = [server.name, *[""] * len(server.differences)]
    return [_row(name, d) for name, d in zip(names, server.differences, strict=False)]


def _row(name: str, d: Difference) -> tuple[str, ...]:
    """One component."""
    over = f"{(d.predicted_bytes - d.proven_bytes) / d.proven_bytes:+.1%}" if d.proven_bytes else "-"
    sizes = (f"{d.predicted_bytes / MIB:.2f}", f"{d.proven_bytes / MIB:.2f}")
    return name, d.device, d.component, *sizes, over, "DIFFERS" if is_mismatch(d) else ""
