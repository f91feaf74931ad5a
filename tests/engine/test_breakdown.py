"""The server's log of a dry run, as b10434 and b11434 write it, with and without `--log-jsonl`."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.engine.breakdown import UnreadableError, parse_dry_run
from launcher.sizes import MIB

MODEL = "/m/target.gguf"
DRAFT = "/m/draft.gguf"
SYSTEM = (
    "0.0 I cmn  common_param: system_info: n_threads = 2 | CPU : SSE3 = 1 | AVX2 = 1 | AMX_INT8 = 1 | OPENMP = 1 | \n"
)
FITTING = "0.2 I cmn  common_init_: fitting params to device memory ...\n"
DRAFT_PASS = f"""\
0.1 I llama_model_loader: loaded meta data with 32 key-value pairs and 272 tensors from {DRAFT} (version GGUF V3 (latest))
0.1 D llama_context:        CPU  output buffer size =     1.16 MiB
0.1 D llama_kv_cache: size =  224.00 MiB (  4096 cells,  28 layers,  2/2 seqs), K (f16):  112.00 MiB, V (f16):  112.00 MiB
0.1 D sched_reserve:        CPU compute buffer size =    68.51 MiB
0.1 I common_memory_breakdown_print: | memory breakdown [MiB] | total   free    self   model   context   compute    unaccounted |
0.1 I common_memory_breakdown_print: |   - Host               |                  475 =   183 +     224 +      68                |
0.1 I common_memory_breakdown_print: |   - AMX                |                  950 =   950 +       0 +       0                |
0.1 I srv    load_model: [spec] estimated memory usage of draft model is 0.00 MiB
"""  # noqa: E501 - as the server writes it
OWN_PASS = f"""\
0.2 I llama_model_loader: loaded meta data with 32 key-value pairs and 272 tensors from {MODEL} (version GGUF V3 (latest))
0.2 I llama_context:        CPU  output buffer size =     1.53 MiB
0.2 I llama_kv_cache: size =  192.00 MiB (  4096 cells,  12 layers,  2/2 seqs), K (f16):   96.00 MiB, V (f16):   96.00 MiB
0.2 I llama_kv_cache: size =   36.00 MiB (   768 cells,  12 layers,  2/2 seqs), K (f16):   18.00 MiB, V (f16):   18.00 MiB
0.2 I llama_memory_recurrent: size =  150.75 MiB (     2 cells,  48 layers,  2 seqs  0 rs_seq), R (f32):    6.75 MiB
0.2 I common_memory_breakdown_print: | memory breakdown [MiB] | total    free     self   model   context   compute    unaccounted |
0.2 I common_memory_breakdown_print: |   - RPC0 (127.0.0.1:1) | 24105 = 24105 + (4651 =  4155 +     380 +     116) +       -4651 |
0.2 I common_memory_breakdown_print: |   - Host               |                   434 =   410 +       0 +      24                |
"""  # noqa: E501 - as the server writes it
END = "0.3 I common_params_fit_impl: projected to use 946 MiB of host memory vs. 24105 MiB of total host memory\n"
OLD_ORDER = SYSTEM + DRAFT_PASS + FITTING + OWN_PASS + END
NEW_ORDER = SYSTEM + FITTING + OWN_PASS + DRAFT_PASS + END


@pytest.mark.parametrize("log", [OLD_ORDER, NEW_ORDER], ids=["draft first", "target first"])
def test_tables_belong_to_the_file_that_was_read(log: str) -> None:
    """Host rows in one sum; exact compute where it is logged; contexts over both kinds of cache; in either order."""
    own, draft, compiled = parse_dry_run(
        log.splitlines(keepends=True), model=MODEL, draft=DRAFT, devices={"RPC0": "cuda0"}
    )
    assert draft is not None
    assert (draft.memory[0].model_bytes, draft.memory[0].compute_bytes) == (1133 * MIB, round(68.51 * MIB))
    assert own.kv_bytes == 228 * MIB
    assert own.recurrent_bytes == round(150.75 * MIB)
    assert own.output_bytes == round(1.53 * MIB)
    host, card = own.memory
    assert (card.device, card.model_bytes, card.context_bytes, card.compute_bytes) == (
        "cuda0",
        4155 * MIB,
        380 * MIB,
        116 * MIB,
    )
    assert (host.device, host.model_bytes, host.compute_bytes) == ("ram", 410 * MIB, 24 * MIB)
    assert "AMX_INT8" in compiled


@pytest.mark.parametrize("log", [OLD_ORDER, NEW_ORDER], ids=["draft first", "target first"])
def test_one_file_for_both_is_told_apart_by_when_it_was_read(log: str) -> None:
    """A model that drafts for itself: what came before the fit is the draft's, else the first is the target's."""
    same = log.replace(DRAFT, MODEL).splitlines(keepends=True)
    own, draft, _ = parse_dry_run(same, model=MODEL, draft=MODEL, devices={})
    assert draft is not None
    assert (own.kv_bytes, draft.kv_bytes) == (228 * MIB, 224 * MIB)


def test_json_lines_are_read() -> None:
    """`--log-jsonl` of b11434: the breakdown is data, all else is text in `msg`."""
    rows = (
        '{"type":"fit_memory_breakdown","data":{"unit":"MiB","rows":['
        '{"kind":"host","name":"Host","self":814,"model":410,"context":380,"compute":24}]}}\n'
    )
    lines = [f'{{"type":"log","time":1,"level":"info","msg":"{line}\\n"}}\n' for line in OWN_PASS.splitlines()[:5]]
    own, _, _ = parse_dry_run([*lines, rows], model=MODEL, draft=None, devices={})
    assert (own.memory[0].model_bytes, own.kv_bytes) == (410 * MIB, 228 * MIB)


def test_a_table_written_twice_is_one() -> None:
    """b11434 at verbosity 5 writes each table as text and then as JSON: both are of the pass before them."""
    model, draft = (
        [f'{{"type":"log","time":1,"level":"info","msg":"{line}\\n"}}\n' for line in text.splitlines()]
        for text in (OWN_PASS, DRAFT_PASS)
    )
    own_json = (
        '{"type":"fit_memory_breakdown","data":{"unit":"MiB","rows":['
        '{"kind":"device","name":"RPC0","description":"127.0.0.1:1","self":4651,"model":4155,"context":380,"compute":116},'
        '{"kind":"host","name":"Host","self":434,"model":410,"context":0,"compute":24}]}}\n'
    )
    draft_json = (
        '{"type":"fit_memory_breakdown","data":{"unit":"MiB","rows":['
        '{"kind":"host","name":"Host","self":475,"model":183,"context":224,"compute":68}]}}\n'
    )
    twice = [*model, own_json, *draft[:-1], draft_json]
    own, beside, _ = parse_dry_run(twice, model=MODEL, draft=DRAFT, devices={"127.0.0.1:1": "cuda0"})
    assert own.kv_bytes == 228 * MIB
    assert {m.device: m.model_bytes // MIB for m in own.memory} == {"ram": 410, "cuda0": 4155}
    assert beside is not None
    assert (beside.kv_bytes, beside.memory[0].compute_bytes) == (224 * MIB, round(68.51 * MIB))


def test_two_rpc_devices_are_told_apart_by_endpoint() -> None:
    """Both servers call their first device RPC0."""
    row = "x common_memory_breakdown_print: |   - RPC0 (127.0.0.1:{}) | 9 = 9 + ({} = {} + 0 + 0) + 0 |\n"
    own, _, _ = parse_dry_run(
        [row.format(1, 100, 100), row.format(2, 300, 300)],
        model=MODEL,
        draft=None,
        devices={"127.0.0.1:1": "left", "127.0.0.1:2": "right"},
    )
    assert {m.device: m.model_bytes // MIB for m in own.memory} == {"left": 100, "right": 300}


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ("", "no memory breakdown"),
        (OLD_ORDER.replace("475 =   183", "475 =   583"), "does not add up"),
        (OLD_ORDER.replace("475 =   183 +     224 +      68", "a new way to say it"), "cannot be read"),
        (
            OLD_ORDER.replace("size =  192.00 MiB", "size =  292.00 MiB"),
            "380 MiB of context, and the log before it 480",
        ),
        (OLD_ORDER.replace(DRAFT_PASS, ""), "of the draft"),
        (OLD_ORDER.replace(OWN_PASS, ""), "of the model"),
    ],
    ids=["empty", "does not add up", "another layout", "sizes differ", "no draft", "no model"],
)
def test_what_is_not_understood_is_no_figure(log: str, why: str) -> None:
    """Missing, contradictory or strange: an error, never a wrong number."""
    with pytest.raises(UnreadableError, match=why):
        parse_dry_run(log.splitlines(keepends=True), model=MODEL, draft=DRAFT, devices={})


@pytest.mark.parametrize(
    "line",
    [
        "sched_reserve:        CPU compute buffer size =    1.2.3 MiB",
        "sched_reserve:        CPU compute buffer size =    . MiB",
        f"sched_reserve:        CPU compute buffer size =    {'9' * 400} MiB",
        "sched_reserve:        CPU compute buffer size =    0.01 MiB",
        "sched_reserve:        CPU compute buffer size =    99999999999 MiB",
    ],
)
def test_a_figure_of_the_log_that_is_none_is_not_taken(line: str) -> None:
    """The table adds up, and stands, where the log before it garbles the same figure or contradicts it."""
    log = OLD_ORDER.replace("sched_reserve:        CPU compute buffer size =    68.51 MiB", line)
    assert log != OLD_ORDER
    _, draft, _ = parse_dry_run(log.splitlines(keepends=True), model=MODEL, draft=DRAFT, devices={"RPC0": "cuda0"})
    assert draft is not None
    assert draft.memory[0].compute_bytes == 68 * MIB


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"self": -5000, "model": -5000}, "no server takes"),
        ({"self": 1 << 40, "model": 1 << 40}, "no server takes"),
        ({"self": 0, "model": 0}, "has nothing in it"),
    ],
    ids=["less than nothing", "more than there is", "nothing"],
)
def test_a_row_that_cannot_be_is_no_figure(row: dict[str, int], why: str) -> None:
    """As JSON, too."""
    whole = {"name": "Host", "context": 0, "compute": 0, "description": "", **row}
    line = json.dumps({"type": "fit_memory_breakdown", "data": {"rows": [whole]}}) + "\n"
    with pytest.raises(UnreadableError, match=why):
        parse_dry_run([line, END], model=MODEL, draft=None, devices={})
    huge = OWN_PASS.replace("434 =   410", f"{'9' * 5000} =   {'9' * 5000}")
    with pytest.raises(UnreadableError, match="cannot be read"):
        parse_dry_run(huge.splitlines(keepends=True), model=MODEL, draft=None, devices={})


@given(st.lists(st.sampled_from((OLD_ORDER + NEW_ORDER).splitlines()) | st.text(max_size=200), max_size=40))
def test_any_log_is_read(lines: list[str]) -> None:
    """Lines in any order and of any text give a proof or one kind of error."""
    with contextlib.suppress(UnreadableError):
        assert parse_dry_run(lines, model=MODEL, draft=DRAFT, devices={}).own.kv_bytes >= 0


@pytest.mark.parametrize(
    "line", ["0.1 I common_memory_breakdown_print: |   - " + " " * 65_000, OWN_PASS + "llama_kv_cache" * 4_000]
)
def test_a_long_line_is_read_at_once(line: str) -> None:
    """A model's own name stands in the log, and may be anything: no pattern goes over it more than once."""
    begun = time.process_time()
    with contextlib.suppress(UnreadableError):
        parse_dry_run([*line.splitlines(keepends=True), OWN_PASS], model=MODEL, draft=None, devices={})
    assert time.process_time() - begun < 0.5
