"""Composes cases: a config directory of a case's own files, before the base of all cases."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from launcher import compiler, config, plan
from launcher.errors import Finding, LaunchError, Location
from launcher.hardware import HostFacts, check_host
from launcher.ir.host import HostGpu, HostInventory, HostNode
from launcher.render import Command
from launcher.sizes import GIB, parse_size
from tests.cases.case import ROOT, Case
from tests.tinymodels import write_parts
from tests.tinymodels.faulty import FAULTS

NODE_CPUS = ("0-7,16-23", "8-15,24-31")


class Outcome(NamedTuple):
    """What came out of a case: every finding, each server's command, the rendered files."""

    findings: tuple[Finding, ...]
    commands: dict[str, Command]
    files: tuple[str, ...]


class Workbench:
    """A case's files on disk; `run` compiles them as `launch render` does."""

    def __init__(self, case: Case, directory: Path, tiny: Callable[..., Path]) -> None:
        self.case = case
        self.conf = directory / "conf"
        self.models = directory / "models"
        self.models.mkdir()
        self.conf.mkdir()
        for source in case.sources:
            path = self.conf / source.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source.text, encoding="utf-8")
            if source.executable:
                path.chmod(0o755)
        for name, arch, quantization, fault in case.models:
            if fault.startswith("part "):
                made = write_parts(arch, directory, quantization=quantization)[int(fault.split()[1]) - 1]
            else:
                sound = tiny(arch, quantization=quantization)
                made = FAULTS[fault](sound, directory) if fault else sound
            shutil.copyfile(made, self.models / name)
        for name, target in case.links:
            (self.models / name).symlink_to(target)

    def run(self, *more: str, instead_of: Location | None = None) -> Outcome:
        """Compile with `more` overrides, in place of the one at `instead_of` where that is a choice of a file.

        A stage that cannot go on gives its findings.
        """
        overrides = [o.replace("$CONF", str(self.conf)) for o in self.case.overrides]
        if instead_of and instead_of.file == "<command line>" and "." not in overrides[instead_of.line - 1]:
            del overrides[instead_of.line - 1]
        if self.case.models or self.case.links:
            overrides.append(f"hardware.model_dir={self.models}")
        try:
            compiled = compiler.compile_fleet([*overrides, *more], config_dirs=(self.conf, ROOT / "conf"))
        except LaunchError as error:
            return Outcome(error.findings, {}, ())
        try:
            rendered = compiler.render(compiled)
        except LaunchError as error:
            known = set(compiled.findings)
            return Outcome((*compiled.findings, *(f for f in error.findings if f not in known)), compiled.commands, ())
        said = {(f.code, f.key, f.message) for f in compiled.findings}
        # a waiver takes a finding of the compile away; the render finds it again
        late = [f for f in rendered.findings if f.code.startswith("render/") and (f.code, f.key, f.message) not in said]
        if self.case.host is not None:
            found = check_host(rendered.manifest, host_facts(self.case.host))
            late += plan.without_waived(compiled.plan.config, found)
        return Outcome(
            (*compiled.findings, *config.locate(late, compiled.composed.sources)),
            compiled.commands,
            tuple(f.path for f in rendered.deployment.files),
        )

    def place(self, finding: Finding) -> str:
        """`file:line` of a finding, files relative to the case's directory or to the base."""
        if finding.location is None:
            return ""
        text = f"{finding.location.file}:{finding.location.line}"
        return text.removeprefix(f"{self.conf}/").removeprefix(f"{ROOT}/")


MACHINE = HostInventory(
    hostname="case",
    cpu_model="",
    features=("avx2",),
    sockets=1,
    physical_cores=16,
    logical_cores=32,
    cpus="0-31",
    ram_bytes=64 * GIB,
    available_bytes=60 * GIB,
    nodes=tuple(HostNode(id=i, cpus=c, ram_bytes=32 * GIB, free_bytes=30 * GIB) for i, c in enumerate(NODE_CPUS)),
    gpus=(HostGpu(name="cuda0", backend="cuda", model="a card", vram_bytes=24 * GIB, free_bytes=24 * GIB),),
    memlock_bytes=None,
)
"""A host that has what the base's hardware says."""


def host_facts(said: dict[str, Any]) -> HostFacts:
    """The facts of a case: what it says, sizes with units, and the base's machine for the rest."""
    facts = _sized(said)
    machine = {k: facts.pop(k) for k in HostInventory.__struct_fields__ if k in facts}
    return msgspec.convert({**facts, "host": {**msgspec.to_builtins(MACHINE), **machine}}, HostFacts)


def _sized(said: Any) -> Any:
    """`said` with the sizes in it, `24GiB` and the like, in bytes."""
    if isinstance(said, list):
        return [_sized(item) for item in said]
    if isinstance(said, dict):
        return {key: _sized(value) for key, value in said.items()}
    return parse_size(said) if isinstance(said, str) and said.endswith("iB") else said


@pytest.fixture
def workbench(tmp_path: Path, tiny_models: Callable[..., Path]) -> Callable[[Case], Workbench]:
    """A function from a case to its files on disk."""
    return lambda case: Workbench(case, tmp_path, tiny_models)
