"""One server with settings, planned: how it would be started, or why it is not. I/O: compiles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from launcher import engine
from launcher.compiler import Compilation, compile_fleet
from launcher.errors import LaunchError
from launcher.ir.config import HardwareConfig
from launcher.ir.measured import Measurement
from launcher.ir.plan import ServerPlan
from launcher.ir.sweep import PointResult, Values, Workload
from launcher.plan import expected, touched
from launcher.sweep import GROUPS, setting_words

OURS = ("--port", "--host", "--api-key-file", "--slot-save-path")
"""Flags of the fleet's servers that a server on trial does not get."""


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """`words` without address; `refused`: why it is not started, "" where it may be: then `planned` is there.

    `digest` names build, model and command line.
    """

    server: str
    values: Values
    refused: str = ""
    words: tuple[str, ...] = ()
    env: dict[str, str] = {}
    digest: str = ""
    build: str = ""
    hardware: str = ""
    gpus: tuple[str, ...] = ()
    planned: ServerPlan | None = None
    machine: HardwareConfig | None = None
    """Where it is to run."""

    @property
    def plan(self) -> ServerPlan:
        """What is to run, of one that is not refused."""
        assert self.planned is not None  # noqa: S101  # nobody starts or measures one that is refused
        return self.planned

    @property
    def planned_bytes(self) -> int:
        """What it is planned to take, on all devices; 0 of one that is refused."""
        return sum(m.planned_bytes for m in self.planned.memory) if self.planned is not None else 0

    @property
    def settings(self) -> str:
        """`slots=2 n_ubatch=256`; "" as the config has it."""
        return setting_words(dict(self.values))

    def expected(self, known: Iterable[Measurement]) -> tuple[float, float] | None:
        """Tokens a second with one request at a time, lowest and highest, by the plan and what is `known` here."""
        if self.planned is None or self.machine is None:
            return None
        here = [m for m in known if m.hardware == self.hardware]
        speed = expected(self.planned, touched(self.planned), self.machine, here, self.digest)
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
    value = written if written is not None else planned
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode().replace(" ", "")


def variant_of(
    server: str, values: Values, current: Values, overrides: Sequence[str], config_dirs: Iterable[Path]
) -> Variant:
    """`server` with `values`, planned in its fleet; what has the `current` ones is taken as the config has it."""
    own = () if values == current else tuple(f"++servers.{server}.{field}={value}" for field, value in values)
    refused = partial(Variant, server=server, values=values)
    try:
        compiled = compile_fleet([*overrides, *own], config_dirs=tuple(config_dirs))
        compiled.require()
    except LaunchError as error:
        first = next((f for f in error.findings if f.severity == "error"), error.findings[0])
        return refused(refused=f"{first.code}: {first.message}")
    planned = next((s for s in compiled.plan.servers if s.name == server), None)
    if planned is None:
        return refused(refused="it is not planned")
    config = compiled.plan.config.servers[server]
    kept = {field: _at(config, field) for field, value in values if field in GROUPS and _at(config, field) != value}
    if own and kept:
        kept_fields = ", ".join(f"{field} stays {value}" for field, value in kept.items())
        return refused(refused=f"{kept_fields}: its file decides")
    command, hardware = compiled.commands[server], compiled.plan.config.hardware
    return Variant(
        server=server,
        values=values,
        words=_without(command.argv, OURS),
        env=command.env,
        digest=measurement_key(compiled, planned),
        build=compiled.engines[planned.config.engine][1].name,
        hardware=hardware.name,
        gpus=tuple(hardware.gpus),
        planned=planned,
        machine=hardware.machine(planned.on) if planned.on else hardware,
    )


def measurement_key(compiled: Compilation, planned: ServerPlan) -> str:
    """What tells one measurement from another: build, model, command line."""
    binary, _ = compiled.engines[planned.config.engine]
    command = compiled.commands[planned.name]
    words, env = _without(command.words, OURS), command.env
    parts = (engine.binary_digest(Path(binary), env), planned.model.header_digest, *words[1:])
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]


def utc_now() -> str:
    """This moment as ISO 8601 writes it, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def measurement_of(
    variant: Variant, result: PointResult, workload: Workload, *, load_average: float, load_s: float
) -> Measurement:
    """What is kept of a point with one request at a time."""
    lengths, planned = workload.prompt_tokens, variant.plan
    return Measurement(
        key=variant.digest,
        hardware=variant.hardware,
        server=variant.server,
        model=planned.config.model,
        quantization=planned.config.quantization,
        settings=variant.settings,
        build=variant.build,
        at=utc_now(),
        prompt_tokens=sum(lengths) // len(lengths),
        n_predict=workload.n_predict,
        batches=result.batches,
        load_average=load_average,
        decode=result.generation,
        prompt=result.prompt,
        memory_bytes=result.memory_bytes,
        load_s=load_s,
        touched=touched(planned),
        drafts=bool(planned.config.draft or planned.settings.ngram),
    )


def _without(words: Sequence[str], flags: Sequence[str]) -> tuple[str, ...]:
    """`words` without `flags` and the value of each."""
    return tuple(w for before, w in pairwise(("", *words)) if w not in flags and before not in flags)
