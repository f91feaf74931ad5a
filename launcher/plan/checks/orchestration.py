"""The parts of the orchestration: who plays them, and whether what passes between them fits. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from launcher.errors import Finding, Fix, Severity
from launcher.ir.config import OrchestrationConfig
from launcher.ir.plan import ServerPlan
from launcher.plan.checks.planning import Planning, finding
from launcher.sizes import gib

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
"""A name that an override takes without quotes."""


def check_workers(planning: Planning) -> Iterator[Finding]:
    """`plan/no-workers`: nobody to recommend. `plan/same-server`: the router or the validator is a worker too."""
    orchestration = planning.fleet.orchestration
    if orchestration is None:
        return
    key = "orchestration.workers"
    if not orchestration.workers:
        message = "the router has no worker to recommend: `model: auto` is answered without asking it"
        yield finding("warning", "plan/no-workers", key, message)
    parts: dict[str, tuple[Severity, str, str]] = {
        orchestration.router: ("note", "router", "while its slots write answers, it sorts no request")
    }
    if orchestration.validation is not None:
        parts[orchestration.validation.validator] = ("warning", "validator", "it would judge what it wrote itself")
    players = {server.name: part for name, part in parts.items() if (server := _first(planning, name)) is not None}
    meant = {worker: server.name for worker in orchestration.workers if (server := _first(planning, worker))}
    left = [worker for worker in orchestration.workers if meant.get(worker) not in players]
    spelled = left and all(_PLAIN.fullmatch(worker) for worker in left)
    fixes = (Fix(override=f"{key}=[{','.join(left)}]", effect="workers that are nothing else"),) if spelled else ()
    for i, worker in enumerate(orchestration.workers):
        if (name := meant.get(worker)) in players:
            severity, part, why = players[name]
            message = f"{name} is the {part} and a worker: {why}"
            yield finding(severity, "plan/same-server", f"{key}.{i}", message, fixes=fixes)


def check_validation(planning: Planning) -> Iterator[Finding]:
    """`plan/no-validator`: a policy that nobody carries out. `plan/block-tokens`: a block no slot can hold."""
    orchestration = planning.fleet.orchestration
    if orchestration is None:
        return
    validation = orchestration.validation
    if validation is None:
        for key, policy in _policies(orchestration):
            if policy not in (None, "none"):
                message = f"{key} is {policy}, and nothing is validated: there is no orchestration.validation"
                yield finding("warning", "plan/no-validator", key, message)
        return
    named = (*orchestration.workers, validation.validator)
    players = [server for name in named if (server := _first(planning, name)) is not None]
    if players:
        smallest = min(players, key=lambda server: server.settings.n_ctx_per_slot)
        slot = smallest.settings.n_ctx_per_slot
        if validation.block_tokens >= slot:
            key = "orchestration.validation.block_tokens"
            yield finding(
                "warning",
                "plan/block-tokens",
                key,
                f"a block may have {validation.block_tokens} tokens, and a slot of {smallest.name} has {slot} "
                "for the request and the block: blocks are cut shorter",
                fixes=(Fix(override=f"{key}={slot // 4}", effect="leaves room for the request"),),
            )


def check_pool_size(planning: Planning) -> Iterator[Finding]:
    """`plan/warm-pool-too-small`: the warm pool holds no file of any worker."""
    orchestration = planning.fleet.orchestration
    pool = orchestration.warm_pool if orchestration else None
    if orchestration is None or pool is None or not pool.ram_bytes or not pool.models_max:
        return
    workers = [server for name in orchestration.workers for server in _meant(planning, name)]
    smallest = min(workers, key=lambda server: server.model.file_bytes, default=None)
    size = smallest.model.file_bytes if smallest else 0
    if smallest and pool.ram_bytes < size:
        yield finding(
            "warning",
            "plan/warm-pool-too-small",
            "orchestration.warm_pool.ram_bytes",
            f"the warm pool has {gib(pool.ram_bytes)}, and no worker's file fits: {smallest.name}, "
            f"the smallest, has {gib(size)}",
            fixes=(Fix(override=f"orchestration.warm_pool.ram_bytes={size}", effect=f"holds {smallest.name}"),),
        )


def _meant(planning: Planning, name: str) -> Iterable[ServerPlan]:
    """Servers that `name` stands for: the one so called, or those of the role or alias."""
    return (s for s in planning.servers if name in (s.name, *s.config.roles, *s.config.aliases))


def _first(planning: Planning, name: str) -> ServerPlan | None:
    """Who plays the part of `name`."""
    return next(iter(sorted(_meant(planning, name), key=lambda server: server.name != name)), None)


def _policies(orchestration: OrchestrationConfig) -> Iterator[tuple[str, str | None]]:
    """Every validation policy that is written, by its key."""
    for table in ("policies", "model_policies"):
        for name, policy in getattr(orchestration, table).items():
            yield f"orchestration.{table}.{name}", policy
    for i, rule in enumerate(orchestration.rules):
        yield f"orchestration.rules.{i}.policy", rule.policy
