"""The server's log of a dry run, as b10434 writes it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.engine import parse_breakdowns
from launcher.sizes import MIB

DRAFT = """\
0.1 D llama_context:        CPU  output buffer size =     1.16 MiB
0.1 D llama_kv_cache: size =  224.00 MiB (  4096 cells,  28 layers,  2/2 seqs), K (f16):  112.00 MiB, V (f16):  112.00 MiB
0.1 D sched_reserve:        CPU compute buffer size =    68.51 MiB
0.1 I common_memory_breakdown_print: | memory breakdown [MiB] | total   free    self   model   context   compute    unaccounted |
0.1 I common_memory_breakdown_print: |   - Host               |                  475 =   183 +     224 +      68                |
0.1 I common_memory_breakdown_print: |   - AMX                |                  950 =   950 +       0 +       0                |
0.1 I srv    load_model: [spec] estimated memory usage of draft model is 0.00 MiB
"""  # noqa: E501 - as the server writes it
OWN = """\
0.2 I llama_context:        CPU  output buffer size =     1.53 MiB
0.2 I llama_kv_cache: size =  192.00 MiB (  4096 cells,  12 layers,  2/2 seqs), K (f16):   96.00 MiB, V (f16):   96.00 MiB
0.2 I llama_kv_cache: size =   36.00 MiB (   768 cells,  12 layers,  2/2 seqs), K (f16):   18.00 MiB, V (f16):   18.00 MiB
0.2 I llama_memory_recurrent: size =  150.75 MiB (     2 cells,  48 layers,  2 seqs  0 rs_seq), R (f32):    6.75 MiB
0.2 I common_memory_breakdown_print: | memory breakdown [MiB] | total    free     self   model   context   compute    unaccounted |
0.2 I common_memory_breakdown_print: |   - RPC0 (127.0.0.1:1) | 24105 = 24105 + (5295 =  4155 +    1024 +     116) +       -5295 |
0.2 I common_memory_breakdown_print: |   - Host               |                   434 =   410 +       0 +      24                |
0.2 I common_params_fit_impl: projected to use 946 MiB of host memory vs. 24105 MiB of total host memory
"""  # noqa: E501 - as the server writes it


def test_draft_comes_first_and_rows_are_added_up() -> None:
    """Host rows in one sum; exact compute where it is logged; contexts over both kinds of cache."""
    draft, own = parse_breakdowns((DRAFT + OWN).splitlines(keepends=True), {"RPC0": "cuda0"})
    assert (draft.memory[0].model_bytes, draft.memory[0].compute_bytes) == (1133 * MIB, round(68.51 * MIB))
    assert own.kv_bytes == 228 * MIB
    assert own.recurrent_bytes == round(150.75 * MIB)
    assert own.output_bytes == round(1.53 * MIB)
    host, card = own.memory
    assert (card.device, card.model_bytes, card.context_bytes, card.compute_bytes) == (
        "cuda0",
        4155 * MIB,
        1024 * MIB,
        116 * MIB,
    )
    assert (host.device, host.model_bytes, host.compute_bytes) == ("ram", 410 * MIB, 24 * MIB)


@given(st.lists(st.sampled_from((DRAFT + OWN).splitlines()) | st.text(max_size=200), max_size=40))
def test_any_log_is_read(lines: list[str]) -> None:
    """Lines in any order and of any text give breakdowns or none, never an exception."""
    assert all(b.kv_bytes >= 0 for b in parse_breakdowns(lines))
