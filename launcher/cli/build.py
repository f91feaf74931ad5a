"""Commands that compile: plan, render, check, config, inspect. They start nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from launcher.cli.findings import show_findings, summary
from launcher.cli.terminal import Terminal, terminals
from launcher.compiler import Compilation, compile_fleet
from launcher.errors import STALE_EXIT_CODE, ConfigError, Finding, HostError, LaunchError, has_errors
from launcher.ir.fleet import FleetManifest, RoutingTable


def print_json(terminal: Terminal, document: Any) -> None:
    """Any msgspec-encodable value, indented, keys in their own order."""
    terminal.line(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def exit_code(compiled: Compilation) -> int:
    """0, or the code of the first stage with an error."""
    try:
        compiled.require()
    except LaunchError as error:
        return error.exit_code
    return 0


def show(overrides: list[str], config_dirs: list[Path], *, as_json: bool, no_color: bool, verbose: bool) -> int:
    """`launch plan`."""
    out, _ = terminals(no_color=no_color)
    compiled = compile_fleet(overrides, config_dirs=config_dirs)
    if as_json:
        from launcher.manifest import plan_document

        print_json(out, plan_document(compiled.plan, compiled.argv, compiled.findings))
    else:
        from launcher.cli.plan_view import show_plan

        show_plan(out, compiled, verbose=verbose)
    return exit_code(compiled)


def write(
    overrides: list[str],
    config_dirs: list[Path],
    *,
    check: bool,
    diff: bool,
    output: Path | None,
    as_json: bool,
    no_color: bool,
) -> int:
    """`launch render`."""
    from launcher.compiler import render
    from launcher.files import compare_deployment, write_deployment

    out, err = terminals(no_color=no_color)
    compiled = compile_fleet(overrides, config_dirs=config_dirs)
    deployment, _, _ = render(compiled)
    target = (output or Path(compiled.plan.config.deploy.output_dir)) / deployment.name
    changes = compare_deployment(deployment, target)
    if as_json:
        print_json(out, {"schema": "launch.render/v1", "directory": str(target), "changes": changes})
    elif diff:
        for change in changes:
            for line in change.diff:
                colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
                out.line(out.style(line, colour) if colour else line)
    else:
        show_findings(err, compiled.findings)
        for change in changes:
            out.line(f"{change.kind:<8} {target / change.path}")
        out.line(f"{len(deployment.files)} files in {target}, {len(changes)} changed")
    if check:
        return STALE_EXIT_CODE if changes else 0
    if not diff:
        write_deployment(deployment, target)
    return 0


def host_findings(compiled: Compilation, manifest: FleetManifest, routes: RoutingTable) -> tuple[Finding, ...]:
    """What this host has against running `manifest` now, located in the config."""
    from launcher import config, engine, hardware
    from launcher.files import deployment_state_dir
    from launcher.supervise import offline_status

    state = deployment_state_dir(manifest.deployment, manifest.supervisor.state_dir)
    alive = offline_status(state)
    running = {p.name: sum(p.measured_bytes.values()) for p in (alive.processes if alive else ()) if p.pid is not None}
    if alive is not None and alive.runtime_pid is not None:
        running["front"] = 0
    facts = hardware.gather_facts(manifest, routes, hardware.take_inventory(), running=running, state_dir=state)
    found = list(hardware.check_host(manifest, facts))
    for binary in sorted({compiled.engines[s.engine][0] for s in compiled.plan.servers}):
        found += engine.check_binary(
            binary,
            {s.name: compiled.argv[s.name] for s in compiled.plan.servers if compiled.engines[s.engine][0] == binary},
        )
    return config.locate(found, compiled.composed.sources)


def examine(overrides: list[str], config_dirs: list[Path], *, as_json: bool, no_color: bool) -> int:
    """`launch check`."""
    from launcher.compiler import render

    out, _ = terminals(no_color=no_color)
    compiled = compile_fleet(overrides, config_dirs=config_dirs)
    _, manifest, routes = render(compiled)
    findings = (*compiled.findings, *host_findings(compiled, manifest, routes))
    if as_json:
        print_json(out, {"schema": "launch.check/v1", "deployment": manifest.deployment, "findings": findings})
    else:
        show_findings(out, findings)
        out.line(f"{manifest.deployment}: {len(manifest.servers)} servers checked on this host, {summary(findings)}")
    return HostError.exit_code if has_errors(findings) else 0


def show_config(overrides: list[str], config_dirs: list[Path], *, as_json: bool, no_color: bool) -> int:
    """`launch config`."""
    from launcher import config
    from launcher.compiler import compose_config

    out, _ = terminals(no_color=no_color)
    composed = compose_config(overrides, config_dirs=config_dirs)
    values = [(key, value, composed.sources.find(key)) for key, value in config.flatten(composed.tree)]
    if as_json:
        origins = {key: str(place) for key, _, place in values if place}
        print_json(out, {"schema": "launch.config/v1", "config": composed.tree, "origins": origins})
        return 0
    width = min(72, max((len(f"{k}: {v}") for k, v, _ in values), default=0))
    for key, value, place in values:
        shown = msgspec.json.encode(value).decode() if not isinstance(value, str) else value
        out.line(f"{f'{key}: {shown}':<{width}}  {out.style(str(place) if place else 'default', 'dim')}")
    return 0


def inspect_file(file: Path, fields: list[str], *, as_json: bool, no_color: bool) -> int:
    """`launch inspect`."""
    from launcher import catalog, config, plan
    from launcher.manifest import inspect_document

    out, _ = terminals(no_color=no_color)
    model = catalog.describe(file)
    server = config.decode_fields(fields)
    inspected = plan.inspect_model(model, server)
    if as_json:
        print_json(out, inspect_document(model, inspected))
        return 0
    from launcher.cli.inspect_view import show_model

    show_model(out, model, inspected)
    return ConfigError.exit_code if has_errors(inspected.findings) else 0
