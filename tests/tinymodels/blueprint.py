"""What a model is made of, before any byte is written: its shape, its metadata and its tensors, as values."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias

import numpy as np

Rule: TypeAlias = Literal["weight", "vector", "constant", "embedding", "tied", "output"]
Value: TypeAlias = bool | int | float | str | list[int] | list[float] | list[str] | list[bool]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model, in llama.cpp's words. Each family reads the fields that it knows; 0 = absent.

    `n_vocab` pads the vocabulary with unused tokens up to that number. `tied` leaves `output.weight` out.
    `n_layer` does not count the `n_mtp` layers. `attention_interval`: every so manyth layer of a hybrid attends.
    """

    n_vocab: int = 320
    n_ctx_train: int = 8192
    n_embd: int = 64
    n_layer: int = 2
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 32
    n_ff: int = 128
    tied: bool = False
    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_exp: int = 0
    n_ff_shexp: int = 0
    n_swa: int = 0
    n_dense_lead: int = 0
    n_lora_q: int = 0
    n_lora_kv: int = 0
    n_rot: int = 0
    head_dim_mla: int = 0
    head_dim_v_mla: int = 0
    attention_interval: int = 0
    d_conv: int = 0
    d_inner: int = 0
    d_state: int = 0
    dt_rank: int = 0
    n_group: int = 0
    n_mtp: int = 0
    n_deepstack: int = 0

    def with_overrides(self, overrides: dict[str, Any]) -> Shape:
        """The same shape with other numbers; an unknown name is a TypeError that gives the nearest one."""
        for name in overrides:
            if name not in self.__dataclass_fields__:
                near = get_close_matches(name, self.__dataclass_fields__, 1)
                raise TypeError(f"no shape field {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return replace(self, **overrides)


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """One tensor: GGUF name, shape in GGML order (the row first), how it is filled and whether it is quantised.

    `value` is the standard deviation of a `weight`, the mean of a `vector`, the number of a `constant`.
    """

    name: str
    shape: tuple[int, ...]
    rule: Rule
    value: float
    quantised: bool

    @property
    def elements(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape, dtype=np.int64))

    def fill(self, seed: int, sign: np.ndarray) -> np.ndarray:
        """The float32 data in numpy order, fixed by seed and name. `sign` (n_vocab) is +1 where a token may be said.

        Dimension 0 of the residual stream is a constant +1 that the output rows of printable tokens share and those
        of all others oppose: random weights then say printable text whatever the prompt, and never EOS. One matrix
        for both ends cannot oppose what it feeds in; there the rows of the others are short instead.
        """
        noise = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        shape = tuple(reversed(self.shape))
        if self.rule == "constant":
            return np.full(shape, self.value, np.float32)
        data = noise.standard_normal(shape, np.float32)
        if self.rule == "vector":
            return np.asarray(self.value + 0.01 * data, np.float32)
        if self.rule == "weight":
            return data * np.float32(self.value)
        data *= np.float32(0.05 if self.rule == "tied" else 0.2)
        data[:, 0] = sign if self.rule == "output" else 1.0
        if self.rule == "tied":
            data[sign < 0] *= np.float32(0.2)
        return data


@dataclass(kw_only=True)
class Blueprint:
    """Metadata and tensors under construction; keys given to `put` get the architecture in front."""

    architecture: str
    metadata: dict[str, Value] = field(default_factory=dict)
    tensors: list[TensorPlan] = field(default_factory=list)

    def put(self, **pairs: Value) -> None:
        """Add `architecture.key`; a double underscore stands for a dot."""
        self.metadata.update({f"{self.architecture}.{k.replace('__', '.')}": v for k, v in pairs.items()})

    def weight(self, name: str, *shape: int, scale: float = 0.02) -> None:
        """A matrix of the multiplications: random, quantised."""
        self._add(name, shape, "weight", scale, quantised=True)

    def plain(self, name: str, *shape: int, scale: float = 0.02) -> None:
        """A small random tensor that stays float32, as converters keep routers, convolutions and biases."""
        self._add(name, shape, "weight", scale, quantised=False)

    def norm(self, name: str, size: int, value: float = 1.0) -> None:
        """A normalisation weight near `value`, float32."""
        self._add(name, (size,), "vector", value, quantised=False)

    def constant(self, name: str, *shape: int, value: float) -> None:
        """The same number everywhere, float32."""
        self._add(name, shape, "constant", value, quantised=False)

    def vocabulary(self, shape: Shape) -> None:
        """Token embedding, output norm and, unless tied, the output matrix."""
        size = (shape.n_embd, shape.n_vocab)
        self._add("token_embd.weight", size, "tied" if shape.tied else "embedding", 0.0, quantised=True)
        self.norm("output_norm.weight", shape.n_embd, 4.0 if shape.tied else 2.0)
        if not shape.tied:
            self._add("output.weight", size, "output", 0.0, quantised=True)

    def blocks(self, shape: Shape) -> Iterator[tuple[int, str]]:
        """Layer numbers with their name prefix."""
        return ((il, f"blk.{il}") for il in range(shape.n_layer))

    def _add(self, name: str, shape: tuple[int, ...], rule: Rule, value: float, *, quantised: bool) -> None:
        """Append one tensor."""
        self.tensors.append(TensorPlan(name=name, shape=shape, rule=rule, value=value, quantised=quantised))


def with_base(blueprint: Blueprint, shape: Shape) -> Blueprint:
    """Add the keys that every text model has."""
    blueprint.put(
        context_length=shape.n_ctx_train,
        embedding_length=shape.n_embd,
        block_count=shape.n_layer,
        feed_forward_length=shape.n_ff,
        attention__head_count=shape.n_head,
        attention__head_count_kv=shape.n_head_kv,
        attention__key_length=shape.head_dim,
        attention__value_length=shape.head_dim,
        attention__layer_norm_rms_epsilon=1e-6,
        rope__freq_base=10000.0,
        vocab_size=shape.n_vocab,
    )
    return blueprint
