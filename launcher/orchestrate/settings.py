"""Settings made of a routing table's orchestration: names resolved, domains collected, schemas built. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.ir.config import OrchestrationConfig, ValidationConfig, ValidationPolicy
from launcher.ir.fleet import RoutingTable

AUTO = "auto"
POLICIES: tuple[ValidationPolicy, ...] = ("none", "final", "block_by_block")
CONFIDENCES = (0, 0.25, 0.5, 0.75, 1)
"""Confidences that the router may answer with: a grammar cannot limit a fraction, but it can list five."""

BLOCK_PROMPT = """\
Write the answer block by block. A block is one complete unit: one function, one class, one paragraph, one step.
Each of your answers is exactly one block, without comments about it. When nothing is left to write, answer [DONE]."""


class Orchestration(msgspec.Struct, frozen=True, kw_only=True):
    """The orchestration section of a routing table, made ready."""

    config: OrchestrationConfig
    """The section itself, for what stands there as it is used; its names are names as written."""
    router: str
    workers: tuple[str, ...]
    """Servers that the router may recommend."""
    domains: tuple[str, ...]
    """What a request may be about: the domains of policies and rules, and every pool's task types."""
    worker_of: dict[str, str]
    """Domain → the pool that serves it as a task type, or its only server."""
    front_door: str | None
    """Who answers when nobody decided."""
    front_door_policy: ValidationPolicy | None
    """Of the first domain with a policy that the front door serves; None: there is none."""
    validator: str
    """"" where nothing is validated."""
    validation: ValidationConfig
    prompts: dict[str, str]
    """System prompt by server."""
    model_policies: dict[str, ValidationPolicy]
    """By every name that leads to the server."""
    slots: dict[str, int]
    """Name → tokens that a slot of its smallest server has."""
    stronger: dict[str, tuple[str, ...]]
    """Name → the servers that take over from its own, one after another."""
    max_retries: int
    """How often a worker's block is refused before that."""
    timeouts_s: dict[str, float]
    """Name → when its servers have given up by themselves: waiting for a start, for a slot, for the answer."""
    ping_after_s: float
    """After how long a silence a stream gets a sign of life; 0: none."""

    @property
    def validated(self) -> frozenset[str]:
        """Every name whose answers are always validated."""
        return frozenset(name for name, policy in self.model_policies.items() if policy != "none")

    def schema(self, workers: tuple[str, ...]) -> dict[str, Any]:
        """JSON Schema of a decision among `workers`."""
        properties = {
            "domain": {"enum": list(self.domains)},
            "recommended_model": {"enum": list(workers)},
            "validation_policy": {"enum": list(POLICIES)},
            "confidence": {"enum": list(CONFIDENCES)},
        }
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }


def settings_of(table: RoutingTable) -> Orchestration | None:
    """The settings of `table`, with names resolved to its servers; those that it does not have are left out.

    None where it orchestrates nothing.
    """
    config = table.orchestration
    if config is None:
        return None

    def server(name: str) -> str:
        """The first server of a name; "" where there is none."""
        return next(iter(table.names.get(name, (name,) if name in table.targets else ())), "")

    workers = tuple(dict.fromkeys(s for w in config.workers if (s := server(w))))
    worker_of = {
        task_type: pool.servers[0] if len(pool.servers) == 1 else pool.name
        for pool in reversed(table.pools)
        for task_type in pool.task_types
    }
    front_door = table.default or next(iter(workers), None)
    doors = {front_door, *(pool.name for pool in table.pools if server(front_door or "") in pool.servers)}
    served = (config.policies.get(domain) for domain, name in worker_of.items() if {name, server(name)} & doors)
    domains = (*config.policies, *(rule.domain for rule in config.rules), *reversed(worker_of))
    written = {s: policy for name, policy in config.model_policies.items() if (s := server(name))}
    own = {name: (name,) for name in table.targets}
    groups = {**{pool.name: pool.servers for pool in table.pools}, **own, **table.names}
    units = {name: [table.targets[s] for s in servers] for name, servers in groups.items() if servers}
    queue_s = table.front.queue_timeout_s
    return Orchestration(
        router=server(config.router),
        config=config,
        workers=workers,
        domains=tuple(dict.fromkeys(domains)),
        worker_of=worker_of,
        front_door=front_door,
        front_door_policy=next((policy for policy in served if policy), None),
        validator=server(config.validation.validator) if config.validation else "",
        validation=config.validation or ValidationConfig(validator="", policy="none"),
        prompts={s: prompt for name, prompt in config.prompts.items() if (s := server(name))},
        model_policies={n: written[s] for n, servers in groups.items() for s in reversed(servers) if s in written},
        slots={name: min(unit.n_ctx_per_slot for unit in found) for name, found in units.items()},
        stronger={name: stronger for name in units if (stronger := table.stronger(name))},
        max_retries=table.max_retries,
        timeouts_s={name: 2 * max(unit.request_timeout_s for unit in found) + queue_s for name, found in units.items()},
        ping_after_s=table.front.ping_after_s,
    )
