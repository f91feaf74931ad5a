"""One server with settings, planned: how it would be started, or why it is not. I/O: compiles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from launcher import engine
from launcher.compiler import Compilation, compile_fleet
from launcher.errors import LaunchError
from launcher.ir.config import HardwareConfig
from launcher.ir.plan import ServerPlan
from launcher.ir.speed import Measurement, Touched
from launcher.ir.sweep import Values
from launcher.plan import expected, touched
from launcher.sweep import GROUPS

OURS = ("--port", "--host", "--api-key-file", "--slot-save-path")
"""Flags of the fleet's servers that a server on trial does not get."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """`words` without address; `refused`: why it is not started, "" where it may be.

    `digest` names build, model and command line.
    """

    server: str
    values: Values
    words: tuple[str, ...] = ()
    env: dict[str, str] = {}
    digest: str = ""
    refused: str = ""
    planned_bytes: int = 0
    devices: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    hardware: str = ""
    build: str = ""
    model: str = ""
    quantization: str = ""
    touched: Touched = Touched(bytes={}, weights=0)
    drafts: bool = False
    planned: ServerPlan | None = None
    machine: HardwareConfig | None = None
    """What is to run, and where."""
    start_timeout_s: float = 180

    @property
    def settings(self) -> str:
        """`slots=2 n_ubatch=256`; "" as the config has it."""
        return " ".join(f"{field}={value}" for field, value in self.values)

    def expected(self, known: Iterable[Measurement]) -> tuple[float, float] | None:
        """Tokens a second with one request at a time, lowest and highest, by the plan and what is `known` here."""
        if self.planned is None or self.machine is None:
            return None
        here = [m for m in known if m.hardware == self.hardware]
        speed = expected(self.planned, self.touched, self.machine, here, self.digest)
        return speed.decode if speed is not None else None


def values_now(compiled: Compilation, server: str, fields: Iterable[str]) -> dict[str, str]:
    """What each of `fields`, and `slots`, is set to, as an override would say it; of what is left open, the planned."""
    planned = next(s for s in compiled.plan.servers if s.name == server)
    config = compiled.plan.config.servers[server]
    return {field: _spelled(_at(config, field), _at(planned.settings, field)) for field in (*fields, "slots")}


def _at(record: Any, field: str) -> Any:
    """The value at a dotted field; None where a record on the way is absent."""
    for part in field.split("."):
        record = record.get(part) if isinstance(record, dict) else getattr(record, part, None)
    return record


def _spelled(written: Any, planned: Any) -> str:
    """A value as an override has it."""
    value = written if written is not None else planned
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode().replace(" ", "")


def candidate_of(
    server: str, values: Values, current: Values, overrides: Sequence[str], config_dirs: Iterable[Path]
) -> Candidate:
    """`server` with `values`, planned in its fleet; what has the `current` ones is taken as the config has it."""
    own = () if values == current else tuple(f"++servers.{server}.{field}={value}" for field, value in values)
    blank = Candidate(server=server, values=values)
    try:
        compiled = compile_fleet([*overrides, *own], config_dirs=tuple(config_dirs))
        compiled.require()
    except LaunchError as error:
        first = next((f for f in error.findings if f.severity == "error"), error.findings[0])
        return msgspec.structs.replace(blank, refused=f"{first.code}: {first.message}")
    planned = next((s for s in compiled.plan.servers if s.name == server), None)
    if planned is None:
        return msgspec.structs.replace(blank, refused="it is not planned")
    config = compiled.plan.config.servers[server]
    kept = {field: _at(config, field) for field, value in values if field in GROUPS and _at(config, field) != value}
    if own and kept:
        said = ", ".join(f"{field} stays {value}" for field, value in kept.items())
        return msgspec.structs.replace(blank, refused=f"{said}: its file decides")
    command = compiled.commands[server]
    return Candidate(
        server=server,
        values=values,
        words=_without(command.argv, OURS),
        env=command.env,
        digest=measurement_key(compiled, planned),
        hardware=compiled.plan.config.hardware.name,
        build=compiled.engines[planned.config.engine][1].name,
        model=planned.config.model,
        quantization=planned.config.quantization,
        touched=touched(planned),
        drafts=bool(planned.config.draft or planned.settings.ngram),
        planned=planned,
        machine=compiled.plan.config.hardware.machine(planned.on) if planned.on else compiled.plan.config.hardware,
        planned_bytes=sum(m.planned_bytes for m in planned.memory),
        devices=planned.settings.devices,
        gpus=tuple(compiled.plan.config.hardware.gpus),
        start_timeout_s=planned.start_timeout_s,
    )


def measurement_key(compiled: Compilation, planned: ServerPlan) -> str:
    """What tells one measurement from another: build, model, command line."""
    binary, _ = compiled.engines[planned.config.engine]
    command = compiled.commands[planned.name]
    words, env = _without(command.words, OURS), command.env
    parts = (engine.binary_digest(Path(binary), env), planned.model.header_digest, *words[1:])
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]


def _without(words: Sequence[str], flags: Sequence[str]) -> tuple[str, ...]:
    """`words` without `flags` and the value of each."""
    before = ("", *words)
    return tuple(w for b, w in zip(before, words, strict=False) if w not in flags and b not in flags)
