"""What an image encoder needs to compute one image: a bound on the buffer of its graph, never under. Pure.

Source: tools/mtmd/clip.cpp (build_vit, build_attn, build_ffn, reserve_compute_meta) and tools/mtmd/models of b10434 and
b11434, whose figures for these encoders are the same as those of b10068.
"""

from __future__ import annotations

from launcher.ir.catalog import ImageEncoder
from launcher.plan.memory.compute_bound import SLACK

F32, F16 = 4, 2
HOLES = 5
"""Percent of what is live, for holes between values; beside them one row of activations."""
SEPARATE, FUSED = 5, 6.5
"""Rows of activations that attention has at once: residual, Q, K, V and one rotated, or one matrix for the three and
two rotated; K and V in half precision take the place of what is done with."""

GAPS = 1.5
"""Rows of attention's room, beside that of the image, into which the wide values of a feed-forward do not fit."""


def image_compute(encoder: ImageEncoder, patches: int, *, flash_attention: bool) -> int:
    """Bytes for an image of `patches` patches: the largest of its parts, and what the allocator's holes take."""
    row = F32 * patches * encoder.n_embd
    tokens = -(-patches // encoder.merge**2)
    given = F32 * tokens * encoder.n_embd_out
    masks = F32 * patches**2 if encoder.windowed else 0
    halves = F16 * patches**2 if encoder.windowed and flash_attention else 0
    layered = given * 2 * encoder.n_deepstack
    pixels = 3 * patches * encoder.patch_size**2
    raw = F32 * pixels
    first = raw + encoder.kernel_bytes * pixels + 2 * row + masks + halves
    attention = int((FUSED if encoder.fused else SEPARATE) * row) + layered
    if flash_attention:
        attention += 2 * halves
    else:
        attention += masks + F32 * patches**2 * encoder.n_head
    wide = F32 * patches * encoder.n_ff
    beside = 2 * wide if encoder.gated else 0
    # half a mask frees the room of the whole one, which wide values may or may not fit into
    room = max(masks, beside) + halves if flash_attention else beside + masks
    feed_forward = wide + room + 2 * row + int(GAPS * row) + raw + layered
    last = 3 * row + 2 * given + layered
    largest = max(first, attention, feed_forward, last)
    kept = F32 * encoder.n_embd * encoder.n_embd_out if encoder.turned else 0
    return largest + largest * HOLES // 100 + row + kept + SLACK
