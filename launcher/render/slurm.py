"""A fleet as jobs for Slurm: one batch script per server, the front, and the front's files. Pure.

Every server is submitted and cancelled by the front, whose runtime decides as everywhere. Slurm itself keeps a server
from running twice, and two of an exclusive group from running at once: their jobs have one name and wait for each other
(`--dependency=singleton`).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping

import msgspec

from launcher.base.addresses import is_loopback
from launcher.errors import Finding, Fix, fault
from launcher.ir.config import SlurmConfig
from launcher.ir.deployment import RenderedFile
from launcher.ir.fleet import FleetManifest, JobUnit, RoutingTable, ServerUnit, SlurmUnit
from launcher.ir.plan import FleetPlan, ServerPlan
from launcher.manifest import encode_document
from launcher.render.command import Command, Engines
from launcher.render.jobs import front_values, job_command, job_values
from launcher.render.led import asked_of, device_name, node_budgets, placed
from launcher.render.left_out import left_out
from launcher.render.nodes import crowded_nodes, shared_cards
from launcher.render.pages import Pages
from launcher.render.passed import files_of, own_key_file
from launcher.render.pods import pod_port
from launcher.render.routes import here_target, routing_table
from launcher.render.units import memory_max

NOWHERE = "slurm.invalid"
"""Host name of a server until it is known where it landed (RFC 2606)."""
_END_S = 35.0
"""Seconds beyond its grace period until a job is gone: KillWait, 30 s by default, and a poll."""
_PLAIN = re.compile(r"[A-Za-z0-9_.,:;/@%&|*()\[\]!=+-]+")
"""Characters of an sbatch option here: nothing that sbatch's reader of `#SBATCH` lines interprets."""
_TIME = re.compile(r"(?i)\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|unlimited|infinite")
_FOLDER = re.compile(r"/[A-Za-z0-9_./@:,=+-]*")
_OURS = frozenset(
    {
        *("--job-name", "-J", "--comment", "--dependency", "-d", "--output", "-o", "--error", "-e", "--open-mode"),
        *("--array", "-a", "--nodes", "-N", "--ntasks", "-n", "--cpus-per-task", "-c", "--mem", "--gres", "--wrap"),
        *("--nodelist", "-w", "--requeue", "--no-requeue", "--test-only", "--wait", "-W", "--parsable"),
        *("--mem-per-cpu", "--mem-per-gpu", "--clusters", "-M", "--help", "-h", "--usage", "--version", "-V"),
    }
)
"""Options that every job has already, and those that are no job's."""


def slurm_files(
    plan: FleetPlan, engines: Engines, manifest: FleetManifest, pages: Pages
) -> tuple[list[RenderedFile], list[Finding]]:
    """The jobs of `plan` below `slurm/`; none where the config does not ask for them.

    `manifest`: the deployment's, of which the front has its own. Findings: `render/slurm-option`, `render/slurm-path`,
    `render/slurm-open`, `render/slurm-node`, `render/slurm-card`, `render/slurm-peer`, and `render/left-out` for what
    a job does not have.
    """
    settings = plan.config.deploy.slurm
    if settings is None:
        return [], []
    findings = [*_bad_options(settings), *_bad_folder(settings)]
    findings += _open(plan, settings)
    findings += (*shared_cards(plan, "slurm"), *_crowded(plan, settings))
    folder = fleet_dir(plan)
    lost: list[tuple[str, str]] = []
    jobs: dict[str, JobUnit] = {}
    commands: dict[str, Command] = {}
    files: list[RenderedFile] = []
    for server in plan.servers:
        if server.starts == "never":
            continue
        findings += _unreachable(server)
        command, without = job_command(server, plan, engines)
        name = job_name(plan, server)
        values, more = job_values(server, plan, command, name=name, folder=folder)
        script = pages.file(f"slurm/jobs/{server.name}.sbatch", "slurm/job.sbatch.j2", values, script=True)
        commands[server.name] = command
        jobs[server.name] = JobUnit(name=name, script=script.text)
        files.append(script)
        lost += ((what, server.name) for what in (*without, *more))
    findings += _peers(plan)
    for beside in plan.services:
        if beside.config.builtin is None and beside.starts != "never" and beside.config.protocol != "rpc":
            lost.append(("services beside the servers: start them elsewhere", beside.name))
    lost += (("hooks: their commands are this machine's", hook.name) for hook in manifest.hooks)
    findings += left_out(lost, of="jobs", key="deploy.slurm")
    fleet = _led(plan, manifest, commands, SlurmUnit(shared_dir=folder, jobs=jobs))
    front = front_values(plan, fleet_name(plan, "front", ""))
    files += [
        RenderedFile(path="slurm/fleet.json", text=encode_document(fleet).decode()),
        RenderedFile(path="slurm/routes.json", text=encode_document(slurm_routes(plan, routing_table(plan))).decode()),
        pages.file("slurm/front.sbatch", "slurm/front.sbatch.j2", front, script=True),
    ]
    return files, findings


def fleet_dir(plan: FleetPlan) -> str:
    """The fleet's own directory on the file system that fronts and nodes share."""
    settings = plan.config.deploy.slurm or SlurmConfig()
    return f"{settings.shared_dir.rstrip('/')}/{plan.deployment}"


def job_name(plan: FleetPlan, server: ServerPlan) -> str:
    """`launch:DEPLOYMENT:SERVER`; of those that take turns one name, `launch:DEPLOYMENT:turns:GROUP`."""
    group = server.config.exclusive
    return fleet_name(plan, server.name) if group is None else fleet_name(plan, "turns", group)


def fleet_name(plan: FleetPlan, *parts: str) -> str:
    """A name of jobs of this deployment, its own for every part: `:` is in none of them."""
    return ":".join(_part(part) for part in (plan.config.deploy.unit_prefix, plan.deployment, *parts))


def _part(text: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_.+@=-]", "-", text)[:100]
    return plain if plain == text else f"{plain}.{zlib.crc32(text.encode()):08x}"


def slurm_routes(plan: FleetPlan, table: RoutingTable) -> RoutingTable:
    """`table` for a front that is told where its servers landed, and that is reached by the names of nodes."""
    own = {server.name: server for server in plan.servers}
    targets = {
        name: msgspec.structs.replace(here_target(target, own[name]), host=NOWHERE, port=pod_port(target.port))
        for name, target in table.targets.items()
        if name in own
    }
    nodes = plan.config.hardware.hosts
    reached = (*nodes, *(node.address for node in nodes.values()))
    hosts = tuple(dict.fromkeys((*table.front.allowed_hosts, *reached)))
    front = msgspec.structs.replace(table.front, allowed_hosts=hosts)
    return msgspec.structs.replace(table, targets={**table.targets, **targets}, front=front)


def _led(plan: FleetPlan, manifest: FleetManifest, commands: Mapping[str, Command], slurm: SlurmUnit) -> FleetManifest:
    """`manifest` as the front reads it: what it submits, and what each asks its node for."""
    on = {server.name: server.on for server in plan.servers}
    limits = {server.name: memory_max(server) for server in plan.servers}
    whole = {device_name(d): d.capacity_bytes for d in plan.devices if d.kind == "gpu"}

    def as_job(unit: ServerUnit) -> ServerUnit:
        """Without dependencies: jobs are on nodes of their own, and one may wait long for its node."""
        limit = limits[unit.name]
        memory = asked_of(unit, None if limit == "infinity" else int(limit), on[unit.name], whole)
        job = placed(unit, commands[unit.name].words, NOWHERE, end_s=_END_S, memory=memory)
        return msgspec.structs.replace(job, after=(), cooldown_s=0)

    servers = tuple(as_job(unit) for unit in manifest.servers if unit.name in commands)
    return msgspec.structs.replace(
        manifest,
        slurm=slurm,
        servers=servers,
        services=tuple(unit for unit in manifest.services if unit.builtin is not None),
        hooks=(),
        devices=node_budgets(plan, []),
        host=msgspec.UNSET,
        # who waits for a node keeps nobody else from being submitted
        supervisor=msgspec.structs.replace(manifest.supervisor, max_parallel_starts=max(1, len(servers))),
    )


def _crowded(plan: FleetPlan, settings: SlurmConfig) -> Iterator[Finding]:
    """`render/slurm-node`: of nodes that are named, what all their jobs take together; of others what one takes."""
    hosts = plan.config.hardware.hosts
    named = [host for host in hosts if host not in settings.constraints]
    if named or not hosts:
        yield from crowded_nodes(plan, "slurm", named)
    for server in plan.servers:
        limit = memory_max(server)
        if server.on in settings.constraints and server.starts != "never" and limit != "infinity":
            machine = plan.config.hardware.machine(server.on)
            if int(limit) > machine.ram_bytes - machine.ram_reserve_bytes:
                message = f"{server.name} asks for more memory than a node of {server.on} has"
                key = f"servers.{server.name}"
                yield fault("render/slurm-node", key, message)


def _open(plan: FleetPlan, settings: SlurmConfig) -> Iterator[Finding]:
    """`render/slurm-open`: servers that anybody may ask who reaches their node, and who may be another fleet's."""
    asking = [s.name for s in plan.servers if s.starts != "never" and own_key_file(s.config.extra_args) is None]
    if asking and not is_loopback(settings.listen):
        more = f" and {len(asking) - 1} more" if len(asking) > 1 else ""
        message = f"{asking[0]}{more} listen on {settings.listen} of their nodes and ask nobody for a key"
        note = "another fleet's server of the same name would be taken for ours, too"
        fix = Fix(
            override=f"runtime.server_key_file={settings.shared_dir}/server_keys", effect="a key that all ask for"
        )
        key = "deploy.slurm.listen"
        yield fault("render/slurm-open", key, message, note, fixes=(fix,), severity="warning")


def _peers(plan: FleetPlan) -> Iterator[Finding]:
    """`render/slurm-peer`: peers on hosts of the fleet, which are no jobs: a server would wait for them for ever."""
    for beside in plan.services:
        if beside.config.protocol == "rpc" and beside.config.command and beside.starts != "never":
            name, _, position = beside.name.rpartition("-rpc")
            message = f"{name} would wait for its peer on {beside.on}, of which there is no job"
            fix = Fix(
                override=f"servers.{name}.rpc=['{beside.config.host}:{beside.port}']",
                effect="a ggml-rpc-server that you start there",
            )
            key = f"servers.{name}.rpc.{position}"
            yield fault("render/slurm-peer", key, message, fixes=(fix,))


def _bad_options(settings: SlurmConfig) -> Iterator[Finding]:
    """`render/slurm-option`: what sbatch would read as something else."""
    single = {name: getattr(settings, name) for name in ("partition", "account", "qos", "time", "listen")}
    values = {
        **{name: value for name, value in single.items() if value is not None},
        **{f"constraints.{host}": value for host, value in settings.constraints.items()},
        **{f"gres.{backend}": value for backend, value in settings.gres.items()},
        **{f"options.{position}": value for position, value in enumerate(settings.options)},
    }
    for key, value in values.items():
        own = key.startswith("options.")
        if not _PLAIN.fullmatch(value) or (own and not value.startswith("-")):
            why = "is no option of sbatch in one word: letters, digits and . , : ; / @ % & | * ( ) [ ] ! = + - _"
        elif own and _is_ours(value.partition("=")[0]):
            why = "is what every job has already, or none may have"
        elif key == "listen" and "/" in value:
            why = "is no address that other nodes reach"
        elif key == "time" and not _TIME.fullmatch(value):
            why = "is no time limit: MINUTES, [DAYS-]HOURS:MINUTES:SECONDS or UNLIMITED"
        else:
            continue
        message = f"{value[:80]!a} {why}"
        yield fault("render/slurm-option", f"deploy.slurm.{key}", message)


def _is_ours(option: str) -> bool:
    """Whether sbatch takes `option` for one of `_OURS`: `--job` is `--job-name`, and `-a1-3` is `-a`."""
    if not option.startswith("--"):
        return option[:2] in _OURS
    return option in _OURS or (len(option) > len("--") and any(ours.startswith(option) for ours in _OURS))


def _bad_folder(settings: SlurmConfig) -> Iterator[Finding]:
    """`render/slurm-path` for a shared directory whose name sbatch would read as something else."""
    folder = settings.shared_dir
    if not _FOLDER.fullmatch(folder) or ".." in folder.split("/"):
        message = f"{folder[:80]!a} is no absolute path of letters, digits and . _ / @ : , = + -"
        yield fault("render/slurm-path", "deploy.slurm.shared_dir", message)


def _unreachable(server: ServerPlan) -> Iterator[Finding]:
    """`render/slurm-path` for files that no absolute path names: a job begins wherever it was submitted."""
    bad = [path for path in files_of(server) if not path.startswith("/")]
    if bad:
        message = f"{server.name} opens {bad[0]!r}, which is no absolute path: its job has no such file"
        key = f"servers.{server.name}.model"
        yield fault("render/slurm-path", key, message)
