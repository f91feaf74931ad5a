"""A whole fleet as files. Pure; jinja2 is imported here, late, because a plan needs only argv."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from launcher.base.names import PROCESS
from launcher.errors import Finding, has_errors
from launcher.ir.deployment import Deployment, RenderedFile
from launcher.ir.fleet import FleetManifest, RoutingTable
from launcher.ir.plan import FleetPlan
from launcher.manifest import encode_fleet, encode_routes
from launcher.render.beside_units import command_values, container_values, runtime_values
from launcher.render.characters import control_characters, open_secrets, refused_value
from launcher.render.command import Command, Engines, render_commands, rung_commands
from launcher.render.exports import EXPORTS, export_values
from launcher.render.fleet_manifest import fleet_manifest
from launcher.render.jobs import JobScripts
from launcher.render.kubernetes import kubernetes_files
from launcher.render.routes import routing_table
from launcher.render.shell_quote import shell_exports, shell_lines
from launcher.render.slurm import slurm_files
from launcher.render.unit_names import runtime_tier, runtime_unit, slice_name, target_name, unit_name, units_of
from launcher.render.units import service_values, tier_values

if TYPE_CHECKING:
    from jinja2 import Environment

SERVICE_TEMPLATE = "systemd/server.service.j2"
RUNTIME_TEMPLATE = "systemd/runtime.service.j2"
USER_TEMPLATE = "systemd/sysusers.conf.j2"
RIGHTS_TEMPLATE = "systemd/polkit.rules.j2"
COMMAND_UNIT_TEMPLATE = "systemd/command.service.j2"
TARGET_TEMPLATE = "systemd/tier.target.j2"
SLICE_TEMPLATE = "systemd/tier.slice.j2"
COMMAND_TEMPLATE = "commands/server.sh.j2"
QUADLET_TEMPLATE = "systemd/quadlet.container.j2"


class Rendered(msgspec.Struct, frozen=True, kw_only=True):
    """Everything made of a plan: the files, what the runtime reads (also among the files), argv by server, findings."""

    deployment: Deployment
    manifest: FleetManifest
    routes: RoutingTable
    commands: dict[str, Command]
    findings: tuple[Finding, ...]


def render_fleet(
    plan: FleetPlan,
    engines: Engines,
    templates: Mapping[str, str],
    launch_version: str,
) -> Rendered:
    """`plan` as files; the same input gives the same bytes.

    `engines`: name → binary and dialect, one for each engine that a server names. `templates`: text by path below
    `templates/`. Findings are those of `render_argv`, and `render/bad-name`,
    `render/hook-left-out`.
    """
    commands, findings = render_commands(plan, engines)
    rungs, refused = rung_commands(plan, engines)
    manifest, left_out = fleet_manifest(plan, commands, launch_version, rungs)
    routes = routing_table(plan)
    spoilt: list[Finding] = []
    environment = _environment(templates, spoilt)
    values = {"header": _header(plan, launch_version), "deployment": plan.deployment}
    units: list[RenderedFile] = []
    bad_paths: list[Finding] = []
    if plan.config.deploy.units:
        units, bad_paths = _units(plan, commands, rungs, environment, values)
    exports, inexpressible = _exports(plan, commands, engines, environment, values)
    objects, unsaid = kubernetes_files(plan, engines, manifest, values["header"])
    jobs, unasked = slurm_files(
        plan, engines, manifest, JobScripts(environment.overlay(finalize=None), values["header"])
    )
    files = [
        RenderedFile(path="fleet.json", text=encode_fleet(manifest).decode()),
        RenderedFile(path="routes.json", text=encode_routes(routes).decode()),
        *_commands(plan, commands, environment, values),
        *units,
        *exports,
        *objects,
        *jobs,
    ]
    return Rendered(
        deployment=Deployment(
            name=plan.deployment, input_digest=plan.input_digest, files=tuple(sorted(files, key=lambda f: f.path))
        ),
        manifest=manifest,
        routes=routes,
        commands=commands,
        findings=(
            *_bad_names(plan),
            *(known := (*control_characters(plan), *open_secrets(plan))),
            *findings,
            *refused,
            *left_out,
            *bad_paths,
            *inexpressible,
            *unsaid,
            *unasked,
            *(() if has_errors(known) else dict.fromkeys(spoilt)),  # said already, and where it is written
        ),
    )


def _environment(templates: Mapping[str, str], spoilt: list[Finding]) -> Environment:
    """Templates with undefined names as errors; values are quoted before they come here.

    A value that would all the same end its line is left out, and added to `spoilt`. Scripts quote line breaks.
    """
    from jinja2 import DictLoader, Environment, StrictUndefined  # noqa: PLC0415 # 0.08 s that a plan does not need

    def one_line(value: Any) -> Any:
        """`value`, if it stays within its line."""
        if isinstance(value, str) and (finding := refused_value(value)) is not None:
            spoilt.append(finding)
            return ""
        return value

    return Environment(
        finalize=one_line,
        loader=DictLoader(dict(templates)),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 # units and scripts, not HTML
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _header(plan: FleetPlan, launch_version: str) -> str:
    """Provenance of a text file, as a comment line; of what it was made is in fleet.json alone, or all would change."""
    return f"# Generated by launch {launch_version} for deployment {plan.deployment}. Do not edit."


def _commands(
    plan: FleetPlan, commands: Mapping[str, Command], environment: Environment, values: Mapping[str, str]
) -> list[RenderedFile]:
    """One runnable script a server, for people."""
    template = environment.overlay(finalize=None).get_template(COMMAND_TEMPLATE)
    files = []
    for server in plan.servers:
        command = commands[server.name]
        text = template.render(
            values,
            description=" ".join(f"{server.name}: {server.entry}".split()),
            exports=shell_exports(command.env),
            command=" \\\n    ".join(shell_lines(command.argv)),
        )
        files.append(RenderedFile(path=f"commands/{server.name}.sh", text=text, executable=True))
    return files


def _exports(
    plan: FleetPlan,
    commands: Mapping[str, Command],
    engines: Engines,
    environment: Environment,
    values: Mapping[str, str],
) -> tuple[list[RenderedFile], list[Finding]]:
    """What `deploy.targets` asks for."""
    files: list[RenderedFile] = []
    findings: list[Finding] = []
    for target in dict.fromkeys(plan.config.deploy.targets):
        export, found = export_values(target, plan, commands, engines)
        text = environment.get_template(f"exports/{EXPORTS[target]}.j2").render({**values, **export})
        files.append(RenderedFile(path=f"exports/{EXPORTS[target]}", text=text))
        findings += found
    return files, findings


def _units(
    plan: FleetPlan,
    commands: Mapping[str, Command],
    rungs: Mapping[str, tuple[Command, ...]],
    environment: Environment,
    values: Mapping[str, str],
) -> tuple[list[RenderedFile], list[Finding]]:
    """The runtime and its rights, services, targets and slices. A tier that is never started has no units."""
    files: list[RenderedFile] = []
    findings: list[Finding] = []

    def add(template: str, name: str, unit: Mapping[str, object]) -> None:
        """One unit."""
        text = environment.get_template(template).render({**values, **unit})
        files.append(RenderedFile(path=f"{units_dir(plan)}/{name}", text=text))

    started = [server for server in plan.servers if server.starts != "never"]
    for server in started:
        lower = [rung.server for rung in plan.ladders.get(server.name, ())]
        ways = zip((server, *lower), (commands[server.name], *rungs.get(server.name, ())), strict=True)
        for name, (way, command) in zip(units_of(plan, server), ways, strict=True):
            unit, found = service_values(way, plan, command, unit=name)
            add(SERVICE_TEMPLATE, name, unit)
            findings += found
    services = [s for s in plan.services if s.config.command and s.starts != "never"]
    for service in services:
        add(COMMAND_UNIT_TEMPLATE, unit_name(plan, service.name), command_values(service, plan))
    containers = [s for s in plan.services if s.config.container and s.starts != "never"]
    for service in containers:
        text = environment.get_template(QUADLET_TEMPLATE).render({**values, **container_values(service, plan)})
        name = f"{plan.config.deploy.unit_prefix}-{service.name}.container"
        files.append(RenderedFile(path=f"containers/{name}", text=text))
    tiers = {server.tier for server in started} | {service.config.tier for service in (*services, *containers)}
    if started or services or containers or plan.remote:
        runtime = runtime_values(plan, {command.words[0] for command in commands.values()})
        add(RUNTIME_TEMPLATE, runtime_unit(plan), runtime)
        if plan.config.deploy.scope == "system":
            text = environment.get_template(RIGHTS_TEMPLATE).render({**values, **runtime})
            name = runtime_unit(plan).removesuffix(".service")
            files.append(RenderedFile(path=f"polkit/50-{name}.rules", text=text))
            if plan.config.deploy.user is None:
                text = environment.get_template(USER_TEMPLATE).render({**values, **runtime})
                files.append(RenderedFile(path=f"sysusers/{name}.conf", text=text))
        tiers |= {tier for tier in (runtime_tier(plan),) if tier is not None}
    for tier in sorted(tiers):
        add(TARGET_TEMPLATE, target_name(plan, tier), tier_values(plan, tier))
        add(SLICE_TEMPLATE, slice_name(plan, tier), tier_values(plan, tier))
    return files, findings


def units_dir(plan: FleetPlan) -> str:
    """Folder of the units in a deployment: `systemd`, or `systemd-user` for one user's."""
    return "systemd-user" if plan.config.deploy.scope == "user" else "systemd"


def _bad_names(plan: FleetPlan) -> tuple[Finding, ...]:
    """Errors for names that would not be file and unit names."""
    names = [(f"servers.{s.name}", s.name) for s in plan.servers] + [(f"tiers.{t}", t) for t in plan.config.tiers]
    names += [(f"services.{s.name}", s.name) for s in plan.services]
    return tuple(
        Finding(
            code="render/bad-name",
            severity="error",
            key=key,
            message=f"{name!r} cannot name a file and a unit: letters, digits, '_', '-' and '.', not first '.' or '-', "
            "and not the deployment's own",
        )
        for key, name in names
        if not PROCESS.fullmatch(name) or name == plan.deployment
    )
