"""What a fleet declares and Kubernetes objects cannot express, as one warning per topic. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from launcher.errors import Finding, fault
from launcher.ir.plan import FleetPlan, ServerPlan, ServicePlan
from launcher.render.command import Command
from launcher.render.passed import WRITTEN, named_files

STATE_DIR = "/var/lib/launch"
"""The directory that the front's pod may write, beside /tmp."""
_SHOWN = 3

Lost = Iterable[tuple[str, str]]
"""Something left out, and the server, service, hook or setting that it belongs to."""


def left_out(lost: Lost, *, of: str = "objects", key: str = "deploy.kubernetes") -> list[Finding]:
    """`lost` as findings at `key`, each topic once."""
    found: dict[str, list[str]] = {}
    for what, name in lost:
        found.setdefault(what, []).append(name)
    findings = []
    for what, several in found.items():
        names = list(dict.fromkeys(several))
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        message = f"the {of} leave out of {shown}: {what}"
        findings.append(fault("render/left-out", key, message, severity="warning"))
    return findings


def without_fleet(plan: FleetPlan) -> Iterator[tuple[str, str]]:
    """Losses that concern no single process."""
    runtime, front = plan.config.runtime, plan.config.runtime.front
    for name, hook in plan.config.hooks.items():
        if hook.enabled:
            yield "what is done once after the start: a Job of yours may do it", f"hook {name}"
    if front.listen:
        yield f"further addresses ({', '.join(front.listen)}): its Service has one", "the front"
    if front.journal_file is not None and not kept_in_pod(front.journal_file):
        yield f"{front.journal_file}, which it may not write: {STATE_DIR} is its own", "the front"
    if runtime.state_dir is not None:
        yield f"runtime.state_dir: {STATE_DIR} is its own", "the front"
    if runtime.cooldown_s:
        yield "pauses between starts (cooldown_s): pods start as their nodes have room", "the fleet"
    cycle = plan.config.orchestration
    if cycle is not None and cycle.warm_pool is not None:
        yield "files kept in RAM (warm_pool): they are on other nodes", "the front"


def kept_in_pod(path: str) -> bool:
    """Whether the front's pod may write `path`."""
    return path.startswith((f"{STATE_DIR}/", "/tmp/"))  # noqa: S108 # the pod's own


def without_server(server: ServerPlan, plan: FleetPlan, command: Command) -> Iterator[str]:
    """Losses of a server: what the node decides, and what only our own runtime does."""
    if command.prefix or server.config.cpus or server.config.numa:
        yield "CPUs and NUMA nodes: the kubelet chooses them (cpuManagerPolicy static, topologyManagerPolicy)"
    if "mlock" in server.settings.load_mode:
        yield "locked memory: how much a pod may lock is the container runtime's"
    if plan.ladders.get(server.name):
        yield "rungs after out-of-memory (oom_ladder): a Deployment has one way to run"
    if server.config.slot_save_path is not None:
        yield "slots saved over a swap (slot_save_path): they end with their pod"
    if server.config.after:
        yield "an order of starts (after): pods start at once, and the front waits for each"
    if server.config.fatal:
        yield "that the fleet does not start without it (fatal): each pod is started again by itself"
    if server.config.rpc:
        yield "a look at its peers before it starts, and later (rpc): it ends without one, and is started again"
    for path in named_files(server.config.extra_args, WRITTEN):
        if not path.startswith("/tmp/"):  # noqa: S108 # the pod's own
            yield f"{path}, which it may not write: /tmp is its own"


def without_service(service: ServicePlan) -> Iterator[str]:
    """Losses of a container's pod."""
    container = service.config.container
    if container is None:
        return
    if service.config.fatal:
        yield "that the fleet does not start without it (fatal): each pod is started again by itself"
    if len(container.ports) > 1:
        yield f"further ports ({', '.join(container.ports[1:])}): its Service has the first"
    for volume in container.volumes:
        if not volume.startswith("/"):
            yield f"volume {volume}: only directories of the node are mounted"
