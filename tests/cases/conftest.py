"""Composes cases: a config directory of a case's own files, before the base of all cases."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from launcher import compiler
from launcher.errors import Finding, LaunchError, Location
from launcher.render import Command
from tests.cases.case import ROOT, Case
from tests.tinymodels.faulty import FAULTS


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
            sound = tiny(arch, quantization=quantization)
            made = FAULTS[fault](sound, directory) if fault else sound
            shutil.copyfile(made, self.models / name)

    def run(self, *more: str, instead_of: Location | None = None) -> Outcome:
        """Compile with `more` overrides, in place of the one at `instead_of` where that is a choice of a file.

        A stage that cannot go on gives its findings.
        """
        overrides = [o.replace("$CONF", str(self.conf)) for o in self.case.overrides]
        if instead_of and instead_of.file == "<command line>" and "." not in overrides[instead_of.line - 1]:
            del overrides[instead_of.line - 1]
        if self.case.models:
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
        return Outcome(
            (*compiled.findings, *compiler.config.locate(late, compiled.composed.sources)),
            compiled.commands,
            tuple(f.path for f in rendered.deployment.files),
        )

    def place(self, finding: Finding) -> str:
        """`file:line` of a finding, files relative to the case's directory or to the base."""
        if finding.location is None:
            return ""
        text = f"{finding.location.file}:{finding.location.line}"
        return text.removeprefix(f"{self.conf}/").removeprefix(f"{ROOT}/")


@pytest.fixture
def workbench(tmp_path: Path, tiny_models: Callable[..., Path]) -> Callable[[Case], Workbench]:
    """A function from a case to its files on disk."""
    return lambda case: Workbench(case, tmp_path, tiny_models)
