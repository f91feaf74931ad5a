"""Which files are servers, and which lie beside one."""

from __future__ import annotations

import pytest

from launcher.author import candidates, slug
from tests.author.facts import on_disk


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Qwen3-8B-Q8_0.gguf", "qwen3-8b"),
        ("gemma-3-4b-it-UD-Q4_K_XL.gguf", "gemma-3-4b-it"),
        ("Meta-Llama-3.1-70B-Instruct-IQ2_XXS-00001-of-00003.gguf", "meta-llama-3-1-70b-instruct"),
        ("nomic-embed-text-v1.5.f16.gguf", "nomic-embed-text-v1-5"),
        ("模型.gguf", "model"),
    ],
)
def test_a_name_for_a_file(name: str, wanted: str) -> None:
    """Without quantization and part, in the characters that a server's name may have."""
    assert slug(name) == wanted


def test_kinds_by_the_header() -> None:
    """An encoder embeds, and so does what pools; rank orders; all else talks."""
    files = [
        on_disk("/m/chat.gguf"),
        on_disk("/m/bge.gguf", arch="bert", causal=False, pooling="cls"),
        on_disk("/m/qwen3-embedding.gguf", arch="qwen3", pooling="last"),
        on_disk("/m/reranker.gguf", arch="qwen3", pooling="rank"),
    ]
    kinds = {c.name: c.kind for c in candidates(files)}
    assert kinds == {"chat": "chat", "bge": "embed", "qwen3-embedding": "embed", "reranker": "rerank"}


def test_a_projector_belongs_to_the_model_of_its_width_and_name() -> None:
    """Two models of one width: the name decides; another width is never fed."""
    files = [
        on_disk("/m/Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf", n_embd=3584),
        on_disk("/m/Qwen2.5-7B-Coder-Q4_K_M.gguf", n_embd=3584),
        on_disk("/m/Qwen3-8B-Q4_K_M.gguf", n_embd=4096),
        on_disk("/m/mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf", arch="clip", widths=(3584,)),
    ]
    found = {c.name: c.projector for c in candidates(files)}
    assert found == {
        "qwen2-5-vl-7b-instruct": "/m/mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf",
        "qwen2-5-7b-coder": None,
        "qwen3-8b": None,
    }


def test_a_projector_without_a_name() -> None:
    """`mmproj-F16.gguf` is the only model's of its folder, or of the one whose name says that it sees."""
    projector = on_disk("/m/mmproj-F16.gguf", arch="clip", widths=(64,))
    assert candidates([on_disk("/m/some.gguf"), projector])[0].projector == "/m/mmproj-F16.gguf"
    assert candidates([on_disk("/n/some.gguf"), projector])[0].projector is None
    two = {
        c.name: c.projector for c in candidates([on_disk("/m/gemma-3-4b-it.gguf"), on_disk("/m/llama.gguf"), projector])
    }
    assert two == {"gemma-3-4b-it": "/m/mmproj-F16.gguf", "llama": None}
    assert [c.projector for c in candidates([on_disk("/m/a.gguf"), on_disk("/m/b.gguf"), projector])] == [None, None]


def test_a_draft_is_no_server() -> None:
    """A small model of the same vocabulary that is called a draft belongs to the large one of its name."""
    files = [
        on_disk("/m/Qwen3-Coder-30B-Q4_K_M.gguf", size_gib=17),
        on_disk("/m/Qwen3-Coder-DRAFT-0.75B-Q8_0.gguf", size_gib=0.7),
        on_disk("/m/Llama-DRAFT-1B.gguf", size_gib=1, n_vocab=7),
        on_disk("/m/eagle.gguf", arch="eagle3"),
    ]
    found = {c.name: c.draft for c in candidates(files)}
    assert found == {
        "qwen3-coder-30b": "/m/Qwen3-Coder-DRAFT-0.75B-Q8_0.gguf",
        "llama-draft-1b": None,  # of another vocabulary: nobody's draft
    }


def test_quantizations_of_one_model_are_one_server() -> None:
    """The largest file; names stay different where models are."""
    files = [
        on_disk("/m/a/x-Q4_K_M.gguf", size_gib=4),
        on_disk("/m/a/x-Q8_0.gguf", size_gib=8),
        on_disk("/m/a/x-Q8_0-embed.gguf", pooling="mean"),
    ]
    chats = [c for c in candidates(files) if c.kind == "chat"]
    assert [(c.path, c.others) for c in chats] == [("/m/a/x-Q8_0.gguf", ("/m/a/x-Q4_K_M.gguf",))]
