"""Commands that measure servers of this machine: `sweep`, `calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from launcher.cli.app import ConfigDir, FleetFile, Json, NoColor, app, request_of

NPredict = Annotated[int, Option("--n-predict", min=2, help="Tokens of each answer.")]


@app.command()
def sweep(
    words: Annotated[
        list[str] | None,
        Argument(metavar="SERVER... [FIELD=A,B]... [OVERRIDES]...", help="What is measured, with which values."),
    ] = None,
    *,
    in_flight: Annotated[
        str, Option("--in-flight", help="Requests at once: 1,2,4. Default: one, and one a slot.")
    ] = "",
    prompt_tokens: Annotated[str, Option("--prompt-tokens", help="Length of the prompts: 256 or 64,512.")] = "256",
    n_predict: NPredict = 64,
    prompts: Annotated[
        Path | None, Option("--prompts", help="A prompt a line; of a journal (.jsonl) the lengths of its requests.")
    ] = None,
    warmup: Annotated[int, Option("--warmup", min=0, help="Batches before those that count.")] = 2,
    batches: Annotated[int, Option("--batches", min=2, help="Batches that count, a point.")] = 5,
    cache: Annotated[bool, Option("--cache", help="Let the server keep prompts that it has seen.")] = False,
    seed: Annotated[int, Option("--seed", help="For the server's sampling.")] = 1,
    p95_limit: Annotated[
        float, Option("--p95-limit", min=1.0, help="The most that p95 may be of one request's at a time.")
    ] = 1.5,
    csv: Annotated[Path | None, Option("--csv", help="Where samples are kept, and found again.")] = None,
    svg: Annotated[Path | None, Option("--svg", help="Where the plot is written.")] = None,
    png: Annotated[Path | None, Option("--png", help="Where it is written as PNG, too (resvg_py).")] = None,
    fresh: Annotated[bool, Option("--fresh", help="Forget what an earlier run measured.")] = False,
    apply: Annotated[bool, Option("--apply", help="Write what is better into your config.")] = False,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Measure settings of servers, recommend the best that is no noise.

    \b
    launch sweep assistant slots=1,2,4 n_ubatch=256,512
    launch sweep frontdoor coder worker slots=1,2 hardware=epyc profile=hot_only
    launch sweep assistant slots=2,4 --apply
    """
    from launcher.cli.sweep import SweepOptions, run_sweep
    from launcher.ir.sweep import Workload

    work = Workload(
        prompt_tokens=_counts(prompt_tokens, "--prompt-tokens"),
        n_predict=n_predict,
        warmup=warmup,
        batches=batches,
        cache=cache,
        seed=seed,
    )
    options = SweepOptions(
        workload=work,
        in_flight=_counts(in_flight, "--in-flight"),
        prompts=prompts,
        p95_limit=p95_limit,
        csv=csv,
        svg=svg,
        png=png,
        fresh=fresh,
        apply=apply,
    )
    from launcher.cli.arguments import is_override
    from launcher.sweep import is_swept

    overrides = [w for w in words or () if is_override(w) and not is_swept(w)]
    _, dirs = request_of(overrides, config_dir, file)
    return run_sweep(list(words or ()), dirs, options, as_json=json, no_color=no_color)


@app.command()
def calibrate(
    words: Annotated[
        list[str] | None,
        Argument(metavar="[SERVER]... [OVERRIDES]...", help="What is measured; all that generate text."),
    ] = None,
    *,
    prompt_tokens: Annotated[int, Option("--prompt-tokens", min=1, help="Length of the prompts.")] = 256,
    n_predict: NPredict = 64,
    warmup: Annotated[int, Option("--warmup", min=0, help="Requests before those that count.")] = 2,
    batches: Annotated[int, Option("--batches", min=2, help="Requests that count.")] = 5,
    file: FleetFile = None,
    config_dir: ConfigDir = None,
    json: Json = False,
    no_color: NoColor = False,
) -> int:
    """Measure servers alone; plans on this host read it.

    \b
    launch calibrate
    launch calibrate assistant profile=dev
    """
    from launcher.cli.arguments import is_override
    from launcher.cli.calibrate import run_calibration
    from launcher.ir.sweep import Workload

    work = Workload(prompt_tokens=(prompt_tokens,), n_predict=n_predict, warmup=warmup, batches=batches)
    _, dirs = request_of([w for w in words or () if is_override(w)], config_dir, file)
    return run_calibration(list(words or ()), dirs, work, as_json=json, no_color=no_color)


def _counts(text: str, option: str) -> tuple[int, ...]:
    """`1,2,4`. Raises typer.BadParameter."""
    try:
        found = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        found = (0,)
    if any(count < 1 for count in found):
        raise typer.BadParameter(f"{option} takes whole numbers above 0 with commas between them, not {text!r}")
    return found
