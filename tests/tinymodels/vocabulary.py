"""Vocabularies small enough to load at once: byte-level BPE, SentencePiece, WordPiece."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .blueprint import Value

NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6
PRINTABLE = range(0x20, 0x7F)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message.role == 'assistant' else message.role }}\n{{ message.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PRE_TOKENIZERS = {"llama": "llama-bpe", "gpt-oss": "gpt-4o", "deepseek2": "deepseek-v3", "granite": "refact"}


@dataclass(kw_only=True)
class Vocabulary:
    """Tokens with their kind and score; `said` marks those that a model may say (they are printable text)."""

    model: str
    tokens: list[str] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    said: list[bool] = field(default_factory=list)
    extra: dict[str, Value] = field(default_factory=dict)

    def add(self, token: str, kind: int = NORMAL, *, said: bool = False) -> int:
        """Append a token and return its id."""
        self.tokens.append(token)
        self.kinds.append(kind)
        self.said.append(said)
        return len(self.tokens) - 1

    def pad(self, n_vocab: int) -> None:
        """Fill up with unused tokens; fewer than there are is an error."""
        if n_vocab < len(self.tokens):
            raise ValueError(f"n_vocab={n_vocab} is less than the {len(self.tokens)} tokens of the vocabulary")
        for i in range(len(self.tokens), n_vocab):
            self.add(f"<|unused_{i}|>", UNUSED)

    def metadata(self) -> dict[str, Value]:
        """The `tokenizer.…` keys."""
        return {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": self.kinds,
            "tokenizer.ggml.scores": [-float(i) for i in range(len(self.tokens))],
            **self.extra,
        }

    def signs(self) -> np.ndarray:
        """+1 for tokens that may be said, -1 for all others."""
        return np.where(self.said, 1.0, -1.0).astype(np.float32)


def for_architecture(arch: str, n_vocab: int) -> Vocabulary:
    """The vocabulary that models of this architecture come with, padded to `n_vocab`."""
    if arch == "bert":
        vocabulary = word_pieces()
    elif arch == "gemma3":
        vocabulary = sentence_pieces()
    else:
        vocabulary = byte_pairs(PRE_TOKENIZERS.get("llama" if arch == "draft" else arch, "qwen2"))
    vocabulary.pad(n_vocab)
    return vocabulary


def none() -> dict[str, Value]:
    """Keys of a model without a vocabulary (its size stands in `vocab_size`): for a dry run, not for serving."""
    return {"tokenizer.ggml.model": "none"}


def byte_pairs(pre_tokenizer: str) -> Vocabulary:
    """256 bytes, one merge (llama.cpp wants the key), control tokens for chat, infill and vision; ChatML."""
    v = Vocabulary(model="gpt2")
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(0x100, 0x200))
    spelling = {byte: chr(byte) if byte in shown else chr(next(hidden)) for byte in range(256)}
    for byte in range(256):
        v.add(spelling[byte], said=byte in PRINTABLE)
    v.add(spelling[0x20] + "t", said=True)
    eot, start, end = (v.add(f"<|{name}|>", CONTROL) for name in ("endoftext", "im_start", "im_end"))
    prefix, suffix, middle = (v.add(f"<|fim_{name}|>", CONTROL) for name in ("prefix", "suffix", "middle"))
    for name in ("vision_start", "vision_end", "image_pad"):
        v.add(f"<|{name}|>", CONTROL)
    v.extra = {
        "tokenizer.ggml.pre": pre_tokenizer,
        "tokenizer.ggml.merges": [f"{spelling[0x20]} t"],
        "tokenizer.ggml.bos_token_id": start,
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.padding_token_id": eot,
        "tokenizer.ggml.fim_pre_token_id": prefix,
        "tokenizer.ggml.fim_suf_token_id": suffix,
        "tokenizer.ggml.fim_mid_token_id": middle,
        "tokenizer.ggml.add_bos_token": pre_tokenizer in {"llama-bpe", "deepseek-v3"},
        "tokenizer.chat_template": CHATML,
    }
    return v


def sentence_pieces() -> Vocabulary:
    """Control tokens, 256 byte fall-backs, one piece for each printable character and a few words."""
    v = Vocabulary(model="llama")
    pad, eos, bos = (v.add(f"<{name}>", CONTROL) for name in ("pad", "eos", "bos"))
    unknown = v.add("<unk>", UNKNOWN)
    v.add("<start_of_turn>", CONTROL)
    end = v.add("<end_of_turn>", CONTROL)
    for byte in range(256):
        v.add(f"<0x{byte:02X}>", BYTE)
    for piece in ("▁", *(chr(c) for c in PRINTABLE if c != 0x20)):
        v.add(piece, said=True)
    for word in ("▁a", "▁t", "th"):
        v.add(word, said=True)
    v.extra = {
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.bos_token_id": bos,
        "tokenizer.ggml.eos_token_id": eos,
        "tokenizer.ggml.eot_token_id": end,
        "tokenizer.ggml.unknown_token_id": unknown,
        "tokenizer.ggml.padding_token_id": pad,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": GEMMA_CHAT,
    }
    return v


def word_pieces() -> Vocabulary:
    """BERT's five special tokens, letters and digits at word starts (U+2581) and inside words, a few words."""
    v = Vocabulary(model="bert")
    pad, unknown, cls, sep, mask = (v.add(f"[{name}]", CONTROL) for name in ("PAD", "UNK", "CLS", "SEP", "MASK"))
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    for piece in (*(f"▁{c}" for c in letters), *letters, "▁the", "▁cat", "▁dog", "▁.", "▁,"):
        v.add(piece)
    v.extra = {
        "tokenizer.ggml.bos_token_id": cls,
        "tokenizer.ggml.eos_token_id": sep,
        "tokenizer.ggml.unknown_token_id": unknown,
        "tokenizer.ggml.seperator_token_id": sep,
        "tokenizer.ggml.padding_token_id": pad,
        "tokenizer.ggml.cls_token_id": cls,
        "tokenizer.ggml.mask_token_id": mask,
    }
    return v
