"""What can be wrong with a plan: one function a check, all of them in `CHECKS`.

In: `Planning`. Out: findings. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from launcher.errors import Finding
from launcher.plan.checks.budgets import (
    check_budgets,
    check_contexts,
    check_nodes,
    check_prompt_caches,
    check_stated,
    check_vram_target,
    check_warm_pool,
)
from launcher.plan.checks.contexts import (
    check_cache_blocks,
    check_embedding_batch,
    check_encoder,
    check_flash_attention,
    check_role_context,
    check_role_slots,
    check_shared_context,
    check_slot_context,
    check_slow_cache,
)
from launcher.plan.checks.cpus import check_cpusets, check_numa, check_overlap, check_threads
from launcher.plan.checks.disk import check_disk
from launcher.plan.checks.front import check_default_kinds, check_front, check_included, check_origins
from launcher.plan.checks.ladder import check_ladder
from launcher.plan.checks.models import (
    check_compute,
    check_draft,
    check_draft_kind,
    check_experts,
    check_projector,
    check_shared_files,
    check_speculation,
)
from launcher.plan.checks.orchestration import check_pool_size, check_validation, check_workers
from launcher.plan.checks.placement import check_split_mode
from launcher.plan.checks.planning import Planning
from launcher.plan.checks.processes import (
    check_idle_cards,
    check_memlock,
    check_offload,
    check_port_conflicts,
    check_servers,
    check_unused_ports,
)
from launcher.plan.checks.slot_saving import check_slot_saving
from launcher.plan.checks.targets import check_targets
from launcher.plan.checks.timeouts import check_timeouts

CHECKS: tuple[Callable[[Planning], Iterator[Finding]], ...] = (
    check_servers,
    check_budgets,
    check_contexts,
    check_nodes,
    check_vram_target,
    check_targets,
    check_prompt_caches,
    check_warm_pool,
    check_disk,
    check_pool_size,
    check_workers,
    check_validation,
    check_ladder,
    check_slot_saving,
    check_stated,
    check_slot_context,
    check_role_context,
    check_role_slots,
    check_shared_context,
    check_encoder,
    check_embedding_batch,
    check_flash_attention,
    check_cache_blocks,
    check_slow_cache,
    check_experts,
    check_draft,
    check_draft_kind,
    check_speculation,
    check_projector,
    check_compute,
    check_shared_files,
    check_port_conflicts,
    check_unused_ports,
    check_threads,
    check_cpusets,
    check_overlap,
    check_numa,
    check_memlock,
    check_timeouts,
    check_offload,
    check_idle_cards,
    check_split_mode,
    check_front,
    check_included,
    check_default_kinds,
    check_origins,
)

WHOLE: frozenset[Callable[[Planning], Iterator[Finding]]] = frozenset(
    {
        *(check_servers, check_stated, check_unused_ports, check_timeouts, check_disk),
        *(check_workers, check_validation, check_pool_size, check_default_kinds),
    }
)
"""Checks that see a fleet of several hosts as one; each of the others sees one host after another."""

__all__ = ["CHECKS", "WHOLE", "Planning"]
