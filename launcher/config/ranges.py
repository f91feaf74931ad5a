"""The values that are plainly wrong whatever the fleet: one table. Pure."""

from __future__ import annotations

Range = tuple[float | None, float | None]

_PORT: Range = (1, 65535)
_POSITIVE: Range = (1, None)
_NOT_NEGATIVE: Range = (0, None)
_SHARE: Range = (0, 1)
_SECONDS: Range = (0, 10_000_000)
"""Any duration (`*_s`): up to 116 days. More is a mistake, and systemd and event loops count in small units."""

_LIMIT: Range = (0.001, _SECONDS[1])
"""Of what fails when it is given no time, or would be done without pause."""

BY_NAME: dict[str, Range] = {
    "port": _PORT,
    "ports": _PORT,
    # threads and slots
    "slots": _POSITIVE,
    "threads": _POSITIVE,
    "threads_batch": _POSITIVE,
    "start_timeout_s": (1, 10_000_000),
    "request_timeout_s": (1, 10_000_000),
    "timeouts_s": _LIMIT,
    "timeout_s": _LIMIT,
    "router_timeout_s": _LIMIT,
    "connect_timeout_s": _LIMIT,
    "header_timeout_s": _LIMIT,
    "health_interval_s": _LIMIT,
    "n_ctx": _POSITIVE,
    "n_ctx_per_slot": _POSITIVE,
    "n_batch": _POSITIVE,
    "n_ubatch": _POSITIVE,
    "experts_used": _POSITIVE,
    "physical_cores": _POSITIVE,
    "logical_cores": _POSITIVE,
    "sockets": _POSITIVE,
    "n_layer": _POSITIVE,
    "n_embd": _POSITIVE,
    "n_vocab": _POSITIVE,
    "parts": _POSITIVE,
    "block": _POSITIVE,
    "block_bytes": _POSITIVE,
    "max_parallel_starts": _POSITIVE,
    "crash_loop_failures": _POSITIVE,
    "health_failures": _POSITIVE,
    "failures": _POSITIVE,
    "log_files": _POSITIVE,
    "cache_ram_mib": (-1, None),
    "context_checkpoints": _NOT_NEGATIVE,
    "n_gpu_layers": _NOT_NEGATIVE,
    "n_cpu_moe": _NOT_NEGATIVE,
    "tensor_split": _NOT_NEGATIVE,
    "n_max": _NOT_NEGATIVE,
    "n_min": _NOT_NEGATIVE,
    "p_min": _SHARE,
    "target_min": _SHARE,
    "target_max": _SHARE,
    "expansion_threshold": _NOT_NEGATIVE,
    "oom_score_adjust": (-1000, 1000),
    "max_retries": _NOT_NEGATIVE,
    "max_escalations": _NOT_NEGATIVE,
    "max_corrections": (0, 100),
    "block_tokens": _POSITIVE,
    "max_blocks": _POSITIVE,
    "confidence_min": _SHARE,
    "retention_days": _NOT_NEGATIVE,
    "context_blocks": _NOT_NEGATIVE,
    "models_min": _NOT_NEGATIVE,
    "models_max": _NOT_NEGATIVE,
    "queue_size": _NOT_NEGATIVE,
    "tokens_per_second_min": _NOT_NEGATIVE,
}
"""Smallest and largest allowed value of a field, by its name in the config types; for a map, of each value."""

EXCEPTIONS: dict[str, Range] = {
    "ServiceConfig.threads": _NOT_NEGATIVE,  # 0: the service's threads are not counted
    "HardwareConfig.ram_bytes": _POSITIVE,
    "FrontConfig.idle_timeout_s": _LIMIT,  # of a tier, 0 is never
}
"""Ranges of fields that share a name with another but not its range, as `Struct.field`."""


def range_of(struct: str, field: str) -> Range:
    """The range of `field` of the config type `struct`; (None, None) when anything goes."""
    usual = _SECONDS if field.endswith("_s") else (None, None)
    return EXCEPTIONS.get(f"{struct}.{field}") or BY_NAME.get(field, usual)


def words(allowed: Range) -> str:
    """The range for people: `1 to 65535`, `0 or more`."""
    low, high = allowed
    return f"{low} or more" if high is None else f"{low} to {high}"
