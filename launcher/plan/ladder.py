"""What each worker falls back to after out-of-memory: the ladder's rungs as whole server plans. Pure."""

from __future__ import annotations

import msgspec

from launcher.ir.catalog import Catalog
from launcher.ir.config import FleetConfig, RungConfig, ServerConfig
from launcher.ir.plan import RungPlan
from launcher.plan.memory import WeightTables
from launcher.plan.server import plan_server


def rung_config(fleet: FleetConfig, worker: str, rung: RungConfig) -> ServerConfig | None:
    """`worker` as `rung` has it: the whole setting, not an addition to the rung before.

    Where a rung serves with another server's model, port, names and place among the others stay the worker's own.
    None where the names lead nowhere, and where the worker's model has no file in the rung's quantization.
    """
    own, config = fleet.servers.get(worker), fleet.servers.get(rung.server or worker)
    if own is None or config is None:
        return None
    model = fleet.models.get(config.model)
    if rung.quantization is not None and model is not None and rung.quantization not in model.files:
        return None
    set_here = msgspec.structs.asdict(rung)
    given = {field: value for field, value in set_here.items() if field != "server" and value is not None}
    if "n_ctx" in given:
        given["n_ctx_per_slot"] = None
    if rung.server is not None:
        config = msgspec.structs.replace(
            config,
            port=own.port,
            tier=own.tier,
            roles=own.roles,
            aliases=own.aliases,
            exclusive=own.exclusive,
            default=own.default,
            after=own.after,
            fatal=own.fatal,
        )
    return msgspec.structs.replace(config, **given)


def ladders(fleet: FleetConfig, catalog: Catalog, tables: WeightTables) -> dict[str, tuple[RungPlan, ...]]:
    """The rungs of every worker, in order; a worker without a rung of its own is left out."""
    if fleet.orchestration is None:
        return {}
    found = {worker: tuple(_rungs(fleet, catalog, tables, worker)) for worker in fleet.orchestration.workers}
    return {worker: rungs for worker, rungs in found.items() if rungs}


def _rungs(fleet: FleetConfig, catalog: Catalog, tables: WeightTables, worker: str) -> list[RungPlan]:
    """The rungs that `worker` can stand on. What is wrong with the worker itself is said by its own plan."""
    rungs: list[RungPlan] = []
    for rung in fleet.orchestration.oom_ladder if fleet.orchestration else ():
        config = rung_config(fleet, worker, rung)
        planned = plan_server(fleet, catalog, worker, config, tables)[0] if config is not None else None
        if planned is not None:
            rungs.append(RungPlan(label=rung_label(rung), server=planned))
    return rungs


def rung_label(rung: RungConfig) -> str:
    """`q3_k_m, n_ctx 2048`: what a rung sets, for people."""
    parts = [rung.server] if rung.server else []
    parts += [rung.quantization] if rung.quantization else []
    names = {"n_ctx": "n_ctx", "cache_type_k": "K", "cache_type_v": "V", "n_gpu_layers": "GPU layers"}
    parts += [f"{name} {value}" for field, name in names.items() if (value := getattr(rung, field)) is not None]
    return ", ".join(parts) or "unchanged"
