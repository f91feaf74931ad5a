"""Every GGML tensor type: its number in a file, its name, weights per block, bytes per block. Pure.

Source: llama.cpp ggml/include/ggml.h (`enum ggml_type`) and ggml/src/ggml-common.h (block structs).
"""

from __future__ import annotations

import math

import msgspec


class GgmlType(msgspec.Struct, frozen=True, gc=False):
    """A tensor type: `block` weights are stored in `block_bytes` bytes."""

    id: int
    name: str
    block: int
    block_bytes: int


TYPES: dict[int, GgmlType] = {
    number: GgmlType(number, name, block, block_bytes)
    for number, name, block, block_bytes in (
        (0, "f32", 1, 4),
        (1, "f16", 1, 2),
        (2, "q4_0", 32, 18),
        (3, "q4_1", 32, 20),
        (6, "q5_0", 32, 22),
        (7, "q5_1", 32, 24),
        (8, "q8_0", 32, 34),
        (9, "q8_1", 32, 36),
        (10, "q2_K", 256, 84),
        (11, "q3_K", 256, 110),
        (12, "q4_K", 256, 144),
        (13, "q5_K", 256, 176),
        (14, "q6_K", 256, 210),
        (15, "q8_K", 256, 292),
        (16, "iq2_xxs", 256, 66),
        (17, "iq2_xs", 256, 74),
        (18, "iq3_xxs", 256, 98),
        (19, "iq1_s", 256, 50),
        (20, "iq4_nl", 32, 18),
        (21, "iq3_s", 256, 110),
        (22, "iq2_s", 256, 82),
        (23, "iq4_xs", 256, 136),
        (24, "i8", 1, 1),
        (25, "i16", 1, 2),
        (26, "i32", 1, 4),
        (27, "i64", 1, 8),
        (28, "f64", 1, 8),
        (29, "iq1_m", 256, 56),
        (30, "bf16", 1, 2),
        (34, "tq1_0", 256, 54),
        (35, "tq2_0", 256, 66),
        (39, "mxfp4", 32, 17),
        (40, "nvfp4", 64, 36),
        (41, "q1_0", 128, 18),
        (42, "q2_0", 64, 18),
    )
}
"""Types that today's llama.cpp loads, by their number in the file."""

REMOVED = {
    4: "q4_2",
    5: "q4_3",
    31: "q4_0_4_4",
    32: "q4_0_4_8",
    33: "q4_0_8_8",
    36: "iq4_nl_4_4",
    37: "iq4_nl_4_8",
    38: "iq4_nl_8_8",
}
"""Types that llama.cpp no longer loads."""

BY_NAME: dict[str, GgmlType] = {t.name: t for t in TYPES.values()}


def tensor_bytes(type_name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of `type_name` (a key of `BY_NAME`) and `shape` in GGML order.

    prod(ne) / block · block_bytes; ne0 must be a multiple of the block. Source: ggml.c `ggml_nbytes`.
    """
    kind = BY_NAME[type_name]
    return math.prod(shape) // kind.block * kind.block_bytes
