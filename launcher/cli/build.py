"""Commands that compile and start nothing: plan (`launch -m a=1,2`: of every combination), render, check, config."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from launcher import config
from launcher.cli.arguments import is_override
from launcher.cli.findings import counted, printable, show_findings, shown_place, summary
from launcher.cli.onefile import words_for
from launcher.cli.terminal import Terminal, terminals
from launcher.compiler import (
    Compilation,
    compile_fleet,
    compose_config,
    error_class,
    hosts_of,
    on_host,
    render,
    with_speeds,
)
from launcher.errors import STALE_EXIT_CODE, ConfigError, Finding, HostError, LaunchError, PlanError, has_errors
from launcher.files import compare_deployment, write_deployment
from launcher.ir.config import FleetConfig
from launcher.ir.deployment import RECORDS, FileDifference
from launcher.ir.measured import ServerSpeed
from launcher.sizes import gib

if TYPE_CHECKING:
    from launcher.ir.documents import FleetChange, RunDocument


def exit_code(compiled: Compilation) -> int:
    """0, or the exit code of the first stage with an error."""
    try:
        compiled.require()
    except LaunchError as error:
        return error.exit_code
    return 0


def show(
    overrides: list[str], config_dirs: list[Path], *, as_json: bool, verbose: bool, prover: str | None = None
) -> int:
    """Run `launch plan`. `prover`: the binary for dry runs ("": the configured one); None: no dry runs."""
    out, _ = terminals()
    compiled = compile_fleet(overrides, config_dirs=config_dirs)
    speeds = expected_speeds(compiled)
    compiled = with_speeds(compiled, speeds)
    proof = None
    if prover is not None:
        from launcher.proving import prove

        proof, found = prove(compiled, binary=prover or None)
        compiled = msgspec.structs.replace(compiled, findings=(*compiled.findings, *found))
    changes: tuple[FleetChange, ...] = ()
    if _may_run(compiled):
        from launcher.cli.coming import fleet_changes

        changes = fleet_changes(compiled, overrides, config_dirs)
    if as_json:
        from launcher.ir.documents import plan_document

        argv = {name: command.argv for name, command in compiled.commands.items()}
        env = {name: command.env for name, command in compiled.commands.items()}
        document = plan_document(compiled.plan, argv, env, compiled.findings, proof, speeds=speeds)
        out.json(document | ({"changes": changes} if changes else {}))
    else:
        from launcher.cli.plan_view import show_plan

        show_plan(out, compiled, verbose=verbose, proof=proof, speeds=speeds)
        if changes:
            from launcher.cli.coming import show_fleet_changes

            show_fleet_changes(out, changes)
    return exit_code(compiled)


def _may_run(compiled: Compilation) -> bool:
    """Whether the plan's deployment, or its bundle for a host, has a state directory or an install record here.

    Only names of files are checked: modules that look closer take 0.15 s to import.
    """
    from launcher.files.state import deployment_state_dir

    whole = compiled.plan.deployment
    names = [whole, *(f"{whole}-{host}" for host in compiled.plan.config.hardware.hosts)]
    try:
        states = [deployment_state_dir(name) for name in names]
    except ValueError:  # a name that no directory can have
        return False
    folders = (Path(RECORDS["system"]), Path.home() / RECORDS["user"])
    return any(path.exists() for path in (*states, *(folder / f"{name}.json" for name in names for folder in folders)))


def expected_speeds(compiled: Compilation) -> tuple[ServerSpeed, ...]:
    """Tokens per second that servers are expected to generate, by the hardware file and by measurements here."""
    from launcher import plan
    from launcher.files.measured import read_measured

    known = tuple(m for m in read_measured() if m.hardware == compiled.plan.config.hardware.name)
    keys = {}
    if known:
        from launcher.trial.variant import measurement_key

        keys = {s.name: measurement_key(compiled, s) for s in compiled.plan.servers if not s.settings.embedding}
    return plan.speeds(compiled.plan, known, keys)


def write(
    overrides: list[str],
    config_dirs: list[Path],
    *,
    check: bool,
    diff: bool,
    output: Path | None,
    prove: bool,
    as_json: bool,
) -> int:
    """Run `launch render`."""
    out, err = terminals()
    compiled = (_proven if prove else compile_fleet)(overrides, config_dirs=config_dirs)
    compiled.require()
    target = (output or Path(compiled.plan.config.deploy.output_dir)) / compiled.plan.deployment
    # a cluster's scheduler has one set of objects for all hosts
    deploy = compiled.plan.config.deploy
    names = () if deploy.kubernetes is not None or deploy.slurm is not None else hosts_of(compiled)
    bundles = {f"{name}/": render(on_host(compiled, name)) for name in names} or {"": render(compiled)}
    written = not check and not diff
    changes: list[FileDifference] = []
    for below, rendered in bundles.items():
        found = (write_deployment if written else compare_deployment)(rendered.deployment, target / below)
        changes += (msgspec.structs.replace(change, path=f"{below}{change.path}") for change in found)
    if as_json:
        from launcher.ir.documents import RenderDocument

        out.json(RenderDocument(directory=str(target), written=written, changes=tuple(changes)))
    elif diff:
        for change in changes:
            out.diff(change.diff)
    else:
        beside = [f for rendered in bundles.values() for f in rendered.findings]
        show_findings(err, [f for f in (*compiled.findings, *beside) if f.severity != "note"])
        for change in changes:
            verb = ("removed" if change.kind == "extra" else "wrote") if written else change.kind
            out.line(f"{verb:<8} {target / change.path}")
        files = f"{sum(len(r.deployment.files) for r in bundles.values())} files in {target}"
        out.line(f"{files}, {len(changes)} {'written' if written else 'differ'}")
        if written:
            for place in (target / below for below in bundles):
                out.line(_next_step(compiled, place))
        elif changes:
            where = ["-o", str(output)] if output is not None else []
            out.line(f"write them with: launch render {shlex.join([*overrides, *words_for(config_dirs), *where])}")
    return STALE_EXIT_CODE if check and changes else 0


def _next_step(compiled: Compilation, place: Path) -> str:
    if compiled.plan.config.deploy.kubernetes is not None:
        return f"apply it with: kubectl apply -k {place / 'kubernetes'}"
    if compiled.plan.config.deploy.slurm is not None:
        return f"run its front where sbatch is: launch serve {place / 'slurm'}"
    return f"run it with: launch serve {place}; put its units in place with: launch install {place}"


def _proven(overrides: list[str], *, config_dirs: list[Path]) -> Compilation:
    from launcher.proving import prove_here

    here = prove_here(compile_fleet(overrides, config_dirs=config_dirs))
    return msgspec.structs.replace(here.compiled, findings=(*here.compiled.findings, *here.findings))


def examine(overrides: list[str], config_dirs: list[Path], *, host: str | None = None, as_json: bool) -> int:
    """Run `launch check`. `host`: the name of this host among several."""
    from launcher import plan
    from launcher.cli.this_host import host_findings, part_of_host
    from launcher.proving import prove_here

    out, _ = terminals()
    here = prove_here(part_of_host(compile_fleet(overrides, config_dirs=config_dirs), host))
    compiled = here.compiled
    rendered = render(compiled)
    manifest = rendered.manifest
    found, checked = host_findings(compiled, manifest, rendered.routes)
    known = {(finding.code, finding.key) for finding in compiled.findings}
    left = [finding for finding in rendered.findings if (finding.code, finding.key) not in known]
    spoken = config.locate(plan.without_waived(compiled.plan.config, left), compiled.composed.sources)
    findings = (*compiled.findings, *spoken, *found, *here.findings)
    checked = (*checked, *here.lines)
    if as_json:
        from launcher.ir.documents import CheckDocument, CheckedDocument

        documents = tuple(CheckedDocument(subject=subject, found=text) for subject, text in checked)
        out.json(CheckDocument(deployment=manifest.deployment, checked=documents, findings=findings))
    else:
        for subject, text in checked:
            out.line(f"{subject.ljust(max(len(s) for s, _ in checked))}  {text}")
        out.line()
        show_findings(out, findings)
        servers = counted(len(manifest.servers), "server")
        out.line(f"{manifest.deployment}: {servers} checked on this host, {summary(findings)}")
    return (error_class(findings) or HostError).exit_code if has_errors(findings) else 0


def show_config(overrides: list[str], config_dirs: list[Path], *, as_json: bool, as_yaml: bool = False) -> int:
    """Run `launch config`. Words that are no overrides are keys, and only what lies below them is shown."""
    out, err = terminals()
    asked = tuple(word for word in overrides if not is_override(word))
    composed = compose_config([word for word in overrides if is_override(word)], config_dirs=config_dirs)
    if as_yaml:
        import yaml

        from launcher.author import modeline
        from launcher.files.packaged import fleet_schema_path

        # with every default, so that nothing is left for a fleet file to guess
        whole = msgspec.to_builtins(composed.fleet)
        if schema := fleet_schema_path():
            out.line(modeline(schema))
        out.write(yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=120))
        return 0
    values = [(key, value, composed.sources.find(key)) for key, value in config.flatten(composed.tree)]
    if asked:
        values = [row for row in values if any(f"{row[0]}.".startswith(f"{key}.") for key in asked)]
        if not values:
            note = f"top-level keys: {', '.join(sorted(composed.tree))}"
            raise ConfigError.of("config/unknown-key", f"nothing lies below {', '.join(asked)}", note, key=asked[0])
    elif not as_json:
        used = _used(composed.fleet)
        rest = [row for row in values if not _is_unused(row[0], used)]
        hidden = f"({len(values) - len(rest)} values)"
        err.line(f"models and quantizations that no server uses are left out {hidden}: launch config models")
        values = rest
        if not out.interactive:
            err.line("this is for people; a fleet file that composes to the same: launch config --yaml")
    if as_json:
        from launcher.ir.documents import ConfigDocument

        origins = {key: str(place) for key, _, place in values if place}
        out.json(ConfigDocument(config=composed.tree, origins=origins))
        return 0
    width = min(60, max((len(f"{k}: {v}") for k, v, _ in values), default=0))
    for key, value, place in values:
        # a value that would move the cursor, or colour what follows, is shown as JSON writes it
        plain = isinstance(value, str) and value.isprintable()
        shown = value if plain else printable(msgspec.json.encode(value).decode())
        out.line(f"{f'{key}: {shown}':<{width}}  {out.style(shown_place(place) if place else 'default', 'dim')}")
    return 0


def _used(fleet: FleetConfig) -> dict[str, set[str]]:
    pairs = [(s.model, s.quantization) for s in fleet.servers.values()]
    pairs += [s.draft.file for s in fleet.servers.values() if s.draft and s.draft.file]
    return {"models": {model for model, _ in pairs}, "quantizations": {quantization for _, quantization in pairs}}


def _is_unused(key: str, used: dict[str, set[str]]) -> bool:
    group, _, rest = key.partition(".")
    return group in used and rest.partition(".")[0] not in used[group]


RUNS_MAX = 500
"""Plans of a multirun: each takes some tenths of a second."""


def plan_each(overrides: list[str], config_dirs: list[Path], *, as_json: bool) -> int:
    """Plan every combination. Returns exit code 0 if any of them has no error. Raises ConfigError."""
    from launcher.config.typed import each_run

    out, _ = terminals()
    runs = each_run(overrides, RUNS_MAX)
    swept = [at for at in range(len(overrides)) if len({run[at] for run in runs}) > 1]
    found = [_run_of(run, tuple(run[at] for at in swept), config_dirs) for run in runs]
    if as_json:
        from launcher.ir.documents import MultirunDocument

        out.json(MultirunDocument(runs=tuple(found)))
    else:
        _show_runs(out, found)
    failed = [run.findings for run in found if not run.fits]
    return 0 if len(failed) < len(found) else (error_class(failed[0]) or PlanError).exit_code


def _run_of(overrides: tuple[str, ...], changed: tuple[str, ...], config_dirs: list[Path]) -> RunDocument:
    from launcher.ir.documents import RunDocument

    try:
        compiled = compile_fleet(overrides, config_dirs=config_dirs)
    except LaunchError as error:
        return RunDocument(overrides=changed, fits=False, devices=(), findings=error.findings)
    findings = compiled.findings
    return RunDocument(
        overrides=changed, fits=not has_errors(findings), devices=compiled.plan.devices, findings=findings
    )


def _show_runs(out: Terminal, found: list[RunDocument]) -> None:
    devices = list(dict.fromkeys(d.name for run in found for d in run.devices))
    header = ("OVERRIDES", "FITS", *(f"{name.upper()} PLANNED / PEAK / BUDGET" for name in devices), "FINDINGS")
    rows: list[tuple[str, ...]] = []
    for run in found:
        sizes = {d.name: f"{gib(d.planned_bytes)} / {gib(d.peak_bytes)} / {gib(d.budget_bytes)}" for d in run.devices}
        cells = (sizes.get(name, "") for name in devices)
        rows.append((" ".join(run.overrides), "yes" if run.fits else "no", *cells, _weightiest(run.findings)))
    out.table(header, rows)


def _weightiest(findings: tuple[Finding, ...]) -> str:
    """The first error, else the first warning, and how many more there are."""
    weighty = [f for kind in ("error", "warning") for f in findings if f.severity == kind]
    if not weighty:
        return ""
    more = f" and {len(weighty) - 1} more" if len(weighty) > 1 else ""
    return f"{weighty[0].severity}[{weighty[0].code}]{more}"
