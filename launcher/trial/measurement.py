"""From what was measured at a point to what is kept of it on this host. Pure."""

from __future__ import annotations

from launcher.ir.speed import Measurement
from launcher.ir.sweep import PointResult, Workload
from launcher.trial.candidate import Candidate


def measurement_of(
    candidate: Candidate, result: PointResult, workload: Workload, *, at: str, load_average: float, load_s: float
) -> Measurement:
    """What is kept of a point with one request at a time. `at`: ISO time."""
    lengths = workload.prompt_tokens
    return Measurement(
        key=candidate.digest,
        hardware=candidate.hardware,
        server=candidate.server,
        model=candidate.model,
        quantization=candidate.quantization,
        settings=candidate.settings,
        build=candidate.build,
        at=at,
        prompt_tokens=sum(lengths) // len(lengths),
        n_predict=workload.n_predict,
        batches=result.batches,
        load_average=load_average,
        decode=result.generation,
        prompt=result.prompt,
        memory_bytes=result.memory_bytes,
        load_s=load_s,
        touched=candidate.touched,
        drafts=candidate.drafts,
    )
