"""`launch -m a=1,2 …`: the plan of every combination, one row each; nothing is started."""

from __future__ import annotations

from pathlib import Path

from launcher import config
from launcher.cli.terminal import Terminal, terminals
from launcher.compiler import compile_fleet, error_class
from launcher.errors import ConfigError, Finding, LaunchError, PlanError, has_errors
from launcher.ir.documents import MultirunDocument, RunDocument
from launcher.sizes import gib

RUNS_MAX = 500
"""A plan takes some tenths of a second."""


def plan_each(overrides: list[str], config_dirs: list[Path], *, as_json: bool, no_color: bool) -> int:
    """Plan every combination. The exit code is 0 where any of them has no error. Raises ConfigError."""
    out, _ = terminals(no_color=no_color)
    runs = config.each_run(overrides)
    if len(runs) > RUNS_MAX:
        message = f"{len(runs)} combinations are more than {RUNS_MAX}"
        raise ConfigError.of("config/override", message)
    swept = [at for at in range(len(overrides)) if len({run[at] for run in runs}) > 1]
    found = [_run(run, tuple(run[at] for at in swept), config_dirs) for run in runs]
    if as_json:
        out.json(MultirunDocument(runs=tuple(found)))
    else:
        _show(out, found)
    failed = [run.findings for run in found if not run.fits]
    return 0 if len(failed) < len(found) else (error_class(failed[0]) or PlanError).exit_code


def _run(overrides: tuple[str, ...], changed: tuple[str, ...], config_dirs: list[Path]) -> RunDocument:
    try:
        compiled = compile_fleet(overrides, config_dirs=config_dirs)
    except LaunchError as error:
        return RunDocument(overrides=changed, fits=False, devices=(), findings=error.findings)
    findings = compiled.findings
    return RunDocument(
        overrides=changed, fits=not has_errors(findings), devices=compiled.plan.devices, findings=findings
    )


def _show(out: Terminal, found: list[RunDocument]) -> None:
    """One row a run: what differs, whether it fits, each device, and the first of what was found."""
    devices = list(dict.fromkeys(d.name for run in found for d in run.devices))
    header = ("OVERRIDES", "FITS", *(f"{name.upper()} PLANNED / PEAK / BUDGET" for name in devices), "FINDINGS")
    rows: list[tuple[str, ...]] = []
    for run in found:
        sizes = {d.name: f"{gib(d.planned_bytes)} / {gib(d.peak_bytes)} / {gib(d.budget_bytes)}" for d in run.devices}
        cells = (sizes.get(name, "") for name in devices)
        rows.append((" ".join(run.overrides), "yes" if run.fits else "no", *cells, _words(run.findings)))
    out.table(header, rows)


def _words(findings: tuple[Finding, ...]) -> str:
    """The first error, else the first warning, and how many more there are."""
    weighty = [f for kind in ("error", "warning") for f in findings if f.severity == kind]
    if not weighty:
        return ""
    more = f" and {len(weighty) - 1} more" if len(weighty) > 1 else ""
    return f"{weighty[0].severity}[{weighty[0].code}]{more}"
