"""What runs when, so that it fits; and the file that says so."""

from __future__ import annotations

import yaml

from launcher.author import Machine, MemoryBudget, ServerCandidate, candidates, choose, fleet_text
from tests.author.facts import GIB, on_disk


def needs(candidate: ServerCandidate, tokens: int) -> int:
    """The file and 1 GiB for every 16,384 tokens a slot."""
    return candidate.facts.file.file_bytes + tokens * GIB // 16384


CHATS = [on_disk("/home/me/m/big-Q4_K_M.gguf", size_gib=18), on_disk("/home/me/m/small-Q4_K_M.gguf", size_gib=5)]
EMBEDDER = on_disk("/home/me/m/bge-f16.gguf", size_gib=0.5, arch="bert", causal=False, pooling="cls", n_ctx_train=512)
MACHINE = Machine(hardware="a CPU", engine="the packaged llama-server", home="/home/me")


def test_all_at_once_where_it_fits() -> None:
    """The longest context that all can have together."""
    chosen = choose(candidates([*CHATS, EMBEDDER]), MemoryBudget(cards=0, ram=27 * GIB), needs)
    assert [(c.candidate.name, c.tier, c.n_ctx_per_slot, c.exclusive) for c in chosen.servers] == [
        ("big", "hot", 16384, ""),
        ("small", "hot", 16384, ""),
        ("bge", "hot", 512, ""),
    ]


def test_turns_where_it_does_not() -> None:
    """One card of 22 GiB: the embedder stays, the others take turns, the largest first, each as long as it can be."""
    chosen = choose(candidates([*CHATS, EMBEDDER]), MemoryBudget(cards=22 * GIB, ram=60 * GIB), needs)
    assert [(c.candidate.name, c.tier, c.n_ctx_per_slot, c.exclusive) for c in chosen.servers] == [
        ("big", "hot", 32768, "turns"),
        ("small", "warm", 32768, "turns"),
        ("bge", "hot", 512, ""),
    ]


def test_who_fits_beside_each_of_the_others_takes_no_turns() -> None:
    """Two cards of 24 GiB: two large models alternate, the small one is always there."""
    chats = [*CHATS, on_disk("/home/me/m/other-Q4_K_M.gguf", size_gib=17), EMBEDDER]
    chosen = choose(candidates(chats), MemoryBudget(cards=30 * GIB, ram=60 * GIB), needs)
    assert [(c.candidate.name, c.tier, c.exclusive) for c in chosen.servers] == [
        ("big", "hot", "turns"),
        ("other", "warm", "turns"),
        ("small", "hot", ""),
        ("bge", "hot", ""),
    ]


def test_what_the_cards_do_not_hold_stays_in_ram() -> None:
    """A model larger than the card comes after those that fit on it."""
    chosen = choose(candidates(CHATS), MemoryBudget(cards=12 * GIB, ram=60 * GIB), needs)
    assert [(c.candidate.name, c.tier) for c in chosen.servers] == [("small", "hot"), ("big", "warm")]
    assert "some layers in RAM" in chosen.servers[1].why


def test_what_fits_in_no_way_is_left_out() -> None:
    """With the reason, which the file repeats."""
    chosen = choose(candidates([*CHATS, EMBEDDER]), MemoryBudget(cards=0, ram=8 * GIB), needs)
    assert [c.candidate.name for c in chosen.servers] == ["small", "bge"]
    ((left, why),) = chosen.left_out
    assert left.name == "big"
    assert "7.5 GiB are free" in why
    assert f"#   ~/m/big-Q4_K_M.gguf: {why}" in fleet_text(chosen, MACHINE)


def test_hundreds_of_models_are_not_hundreds_of_servers() -> None:
    """The first file stays readable, and says how many it leaves out."""
    many = [on_disk(f"/m/model-{n:03}.gguf", size_gib=0.1) for n in range(500)]
    chosen = choose(candidates(many), MemoryBudget(cards=0, ram=64 * GIB), needs)
    assert len(chosen.servers) == 12
    text = fleet_text(chosen, MACHINE)
    assert "and 483 more" in text
    assert len(text.splitlines()) < 80


def test_the_text_is_the_yaml_that_it_seems_to_be() -> None:
    """Paths that YAML would read as something else are quoted; a title cannot end its comment."""
    odd = [on_disk("/home/me/my models: new #1/null.gguf"), on_disk('/m/a "b"\\\n.gguf')]
    text = fleet_text(choose(candidates(odd), MemoryBudget(cards=0, ram=64 * GIB), needs), MACHINE)
    servers = yaml.safe_load(text)["servers"]
    assert {server["file"] for server in servers.values()} == {
        "~/my models: new #1/null.gguf",
        '/m/a "b"\\\n.gguf',
    }


def test_names_by_what_they_do() -> None:
    """The first of each kind answers to the word that a client would try."""
    vision = on_disk("/m/a-vl.gguf", size_gib=2)
    files = [
        vision,
        on_disk("/m/mmproj-a-vl.gguf", arch="clip", widths=(64,)),
        on_disk("/m/b.gguf", size_gib=3),
        EMBEDDER,
    ]
    text = fleet_text(choose(candidates(files), MemoryBudget(cards=0, ram=64 * GIB), needs), MACHINE)
    aliases = {name: server.get("aliases") for name, server in yaml.safe_load(text)["servers"].items()}
    assert aliases == {"b": ["chat"], "a-vl": ["vision"], "bge": ["embeddings"]}
