"""A whole fleet in one file: what a header knows and what a reader would guess may be left out of it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from time import process_time

import pytest

from launcher.base.names import PROCESS
from launcher.compiler import Compilation, compile_fleet
from launcher.config.located import LocatedTree
from launcher.config.shorthand import spell_out
from launcher.errors import CatalogError, ConfigError, LaunchError, Location
from launcher.ir.config import ServerConfig

Tiny = Callable[..., Path]

NAMES = {
    "Qwen3-8B-Q8_0.gguf": ("qwen3", {"quantization": "q8_0"}),
    "Qwen2.5-VL-7B-Instruct-f16.gguf": ("qwen2vl", {}),
    "mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf": ("qwen2vl-projector", {}),
    "bge-small-en-v1.5-f16.gguf": ("bert", {}),
    "llama-f16.gguf": ("llama", {}),
    "llama-draft-f16.gguf": ("draft", {}),
}


@pytest.fixture
def home(tmp_path: Path, tiny_models: Tiny, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home with a folder of models, tiny stand-ins with real names."""
    folder = tmp_path / "home/models"
    folder.mkdir(parents=True)
    for name, (arch, wanted) in NAMES.items():
        shutil.copy(tiny_models(arch, **wanted), folder / name)
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(tmp_path)
    return folder.parent


def compiled(home: Path, text: str, *overrides: str, name: str = "launch.yaml") -> Compilation:
    """The fleet of a file with this text in the home."""
    path = home / name
    path.write_text(text)
    return compile_fleet(["hardware=dev", *overrides], config_dirs=[path])


def servers(compilation: Compilation) -> dict[str, ServerConfig]:
    """The servers as they were composed."""
    return compilation.composed.fleet.servers


def errors(compilation: Compilation) -> list[str]:
    """Codes of findings that are no notes, and not about the two cores of `hardware=dev`."""
    return [f.code for f in compilation.findings if f.severity != "note" and f.code != "cpu/oversubscribed"]


LONG_S = [604800, 1000000, 1234567, 1234568, 100000.25, 0.25]
ONE_LINERS = """\
servers:
  chat: ~/models/Qwen3-8B-Q8_0.gguf
  embedder: models/bge-small-en-v1.5-f16.gguf
"""


def test_one_line_a_server(home: Path) -> None:
    """A path is a server: tier, port, slots, context come from its header or a guess; nobody is blamed for them."""
    done = compiled(home, ONE_LINERS)
    chat, embedder = servers(done)["chat"], servers(done)["embedder"]
    assert (chat.tier, chat.slots, chat.n_ctx_per_slot, chat.embedding) == ("hot", 2, 8192, None)
    assert (embedder.n_ctx_per_slot, embedder.n_ubatch, embedder.embedding) == (512, 1024, True)
    assert {18001, 18900} == {min(chat.port, embedder.port, 18001), max(chat.port, embedder.port, 18900)}
    assert (chat.quantization, embedder.quantization) == ("q8_0", "f16")
    assert done.plan.deployment == "dev-home"
    assert done.composed.fleet.routing.default == "chat"
    assert (chat.fatal, embedder.fatal) == (False, False)
    assert errors(done) == []
    assert "--embeddings" in done.commands["embedder"].argv


@pytest.mark.parametrize("begin", ["~/models", "$HOME/models", "${HOME}/models", "models", "./models"])
def test_where_a_path_begins(home: Path, begin: str) -> None:
    """The user's home by any of its names; and without one the folder of the fleet file, not where one stands."""
    done = compiled(home, f"servers: {{chat: '{begin}/Qwen3-8B-Q8_0.gguf'}}")
    assert done.commands["chat"].argv[2] == str(home / "models/Qwen3-8B-Q8_0.gguf")


def test_a_path_that_was_typed_begins_where_it_was_typed(home: Path, tmp_path: Path) -> None:
    """`servers.chat.file=…` on the command line is relative to where one stands."""
    done = compiled(home, ONE_LINERS, "servers.chat.file=home/models/llama-f16.gguf")
    assert done.commands["chat"].argv[2] == str(tmp_path / "home/models/llama-f16.gguf")


def test_overrides_reach_what_a_short_form_stands_for(home: Path) -> None:
    """The file is a Hydra fragment: values, additions, removals and group choices."""
    words = (
        "servers.chat.slots=3",
        "+servers.more=home/models/llama-f16.gguf",
        "~servers.embedder",
        "runtime.front.port=1",
    )
    done = compiled(home, ONE_LINERS, *words)
    assert servers(done)["chat"].slots == 3
    assert list(servers(done)) == ["chat", "more"]
    assert done.composed.fleet.runtime.front.port == 1


def test_a_port_is_its_servers_own(home: Path) -> None:
    """Nobody who is added or removed takes it, but who wrote it down: else all behind would restart with a reload."""
    chat = servers(compiled(home, ONE_LINERS))["chat"].port
    first = ONE_LINERS.replace("servers:", "servers:\n  aaa: models/bge-small-en-v1.5-f16.gguf")
    assert servers(compiled(home, first))["chat"].port == chat
    written = servers(compiled(home, first.replace("servers:", f"ports: {{aaa: {chat}}}\nservers:")))
    assert written["chat"].port == chat + 1


def test_a_defaults_list_brings_parts_of_others(home: Path) -> None:
    """What a profile can do, a fleet file can: packaged servers, another machine."""
    text = "defaults: [{/server: [assistant]}, _self_]\nports: {assistant: 18001}\n" + ONE_LINERS.replace(
        "chat:", "talk:"
    )
    done = compiled(home, text)
    assert set(servers(done)) == {"assistant", "talk", "embedder"}
    assert errors(done) == []


def test_projector_and_draft_by_their_paths(home: Path) -> None:
    """A projector and a draft beside the file need no entry of their own."""
    text = """\
servers:
  vision:
    file: ~/models/Qwen2.5-VL-7B-Instruct-f16.gguf
    projector: ~/models/mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf
    aliases: [gpt-4o]
  quick:
    file: models/llama-f16.gguf
    draft: models/llama-draft-f16.gguf
"""
    done = compiled(home, text)
    assert errors(done) == []
    argv = done.commands["vision"].argv
    assert argv[argv.index("--mmproj") + 1] == str(home / "models/mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf")
    assert str(home / "models/llama-draft-f16.gguf") in done.commands["quick"].argv


def test_time_to_live(home: Path) -> None:
    """`ttl_s` is a tier of its own, started on demand; a tier that is written keeps its start."""
    text = """\
servers:
  chat: {file: ~/models/llama-f16.gguf, ttl_s: 600}
  b: {file: ~/models/llama-f16.gguf, ttl_s: 5, tier: hot}
"""
    done = compiled(home, text)
    tiers = done.composed.fleet.tiers
    chat, other = (tiers[servers(done)[name].tier] for name in ("chat", "b"))
    assert (chat.start, chat.idle_timeout_s, other.start, other.idle_timeout_s) == ("demand", 600, "boot", 5)


def test_a_model_entry_of_one_line(home: Path) -> None:
    """A model may be a path too; its quantization is its file's."""
    done = compiled(home, "models: {qwen: ~/models/Qwen3-8B-Q8_0.gguf}\nservers: {a: {model: qwen}, b: {model: qwen}}")
    assert servers(done)["a"].quantization == "q8_0"
    assert errors(done) == []


def test_files_without_an_architecture(home: Path) -> None:
    """The path is all that a model entry needs; what is written of the architecture is still held against the file."""
    text = "models:\n  qwen: {{files: {{q8_0: ~/models/Qwen3-8B-Q8_0.gguf}}{more}}}\nservers: {{a: {{model: qwen}}}}"
    assert errors(compiled(home, text.format(more=""))) == []
    said = ", title: t, source: s, architecture: {arch: qwen3, n_layer: 2, n_embd: 64, n_head: 4, n_head_kv: 4, "
    said += "n_vocab: 320, n_ctx_train: 8192}"
    done = compiled(home, text.format(more=said))
    assert [f.key for f in done.findings if f.code == "catalog/declared-mismatch"] == [
        "models.qwen.architecture.n_head_kv"
    ]


def test_the_lock_plans_where_the_models_are_not(home: Path) -> None:
    """What the headers said is kept, to the byte, also where the disk's mount point is left; of projectors, too."""
    see = "~/models/Qwen2.5-VL-7B-Instruct-f16.gguf, projector: ~/models/mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf"
    text = f"{ONE_LINERS}  see: {{file: {see}}}\n"
    before = compiled(home, text)
    (home / "models").rename(home / "elsewhere")
    (home / "models").mkdir()
    after = compiled(home, text)
    memory = [[m for s in c.plan.servers for m in s.memory] for c in (before, after)]
    assert memory[0] == memory[1]
    assert {f.source for f in after.catalog.files.values()} == {"gguf"}
    assert after.commands["chat"].argv == before.commands["chat"].argv
    lock = json.loads((home / "launch.lock").read_text())
    lock["files"]["models/bge-small-en-v1.5-f16.gguf"]["file"]["architecture"]["n_layer"] = 0
    (home / "launch.lock").write_text(json.dumps(lock))
    with pytest.raises(CatalogError, match=r"^(?!.*Qwen).*bge-small"):  # what is spoiled costs nothing else
        compiled(home, text)
    (home / "launch.lock").write_text("{")
    with pytest.raises(CatalogError):
        compiled(home, ONE_LINERS)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lock: lock.replace(b'"files":{', b'"files":{"deep":' + b"[" * 100_000 + b"]" * 100_000 + b","),
        lambda lock: lock.replace(b'"files":{', b'"files":{"\xff":{},'),
        lambda lock: lock.replace(b'"gpt2"', b'"gpt\xff"').replace(b'"bert"', b'"bert\xff"'),
        lambda lock: re.sub(rb'"n_layer":\d+', b'"n_layer":1000000000', lock),
        lambda lock: re.sub(rb'"parts":\[[^]]*\]', b'"parts":[]', lock),
        lambda lock: re.sub(rb'"size_bytes":(\d+)', rb'"size_bytes":-\1', lock),
    ],
    ids=[
        "too deep",
        "a name that is no UTF-8",
        "a value that is no UTF-8",
        "a billion layers",
        "no parts",
        "less than 0",
    ],
)
def test_a_lock_that_is_spoiled_holds_nothing(home: Path, spoil: Callable[[bytes], bytes]) -> None:
    """It costs neither a trace nor the machine's memory; what it does not hold is missing."""
    compiled(home, ONE_LINERS)
    path = home / "launch.lock"
    lock = path.read_bytes()
    path.write_bytes(spoil(lock))
    assert path.read_bytes() != lock
    for model in (home / "models").rglob("*.gguf"):
        model.unlink()
    with pytest.raises(LaunchError) as caught:
        compiled(home, ONE_LINERS)
    assert {f.code for f in caught.value.findings} == {"catalog/missing-file"}


def test_a_lock_that_is_a_pipe_holds_nothing_up(home: Path) -> None:
    """Nobody writes into it; the plan is made of the models."""
    os.mkfifo(home / "launch.lock")
    assert errors(compiled(home, ONE_LINERS)) == []


def test_a_lock_that_cannot_be_written(home: Path) -> None:
    """A note, and the plan all the same."""
    (home / "launch.lock").mkdir()
    done = compiled(home, ONE_LINERS)
    assert [f.severity for f in done.findings if f.code == "catalog/lock-unwritten"] == ["note"]


@pytest.mark.parametrize(
    ("value", "code", "says"),
    [
        ("~/models/Qwen3-8B-Q8.gguf", "catalog/missing-file", "did you mean"),
        ("~/modls/Qwen3-8B-Q8_0.gguf", "catalog/missing-file", "cannot be listed"),
        ("~/models/mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf", "catalog/not-a-model", "projector: "),
        ("{file: ~/models/llama-f16.gguf, projector: ~/models/llama-f16.gguf}", "catalog/projector-mismatch", "mmproj"),
        ("{file: [a]}", "config/type", "path"),
        ("hf:org/repo:Q8_0", "catalog/missing-file", "launch add hf:"),
        ("~/models", "catalog/unreadable", "name a GGUF file in it"),
    ],
)
def test_a_file_that_will_not_do(home: Path, value: str, code: str, says: str) -> None:
    """Where it was written, and what to do."""
    with pytest.raises((CatalogError, ConfigError)) as caught:
        compiled(home, f"servers:\n  chat: {value}")
    (finding,) = caught.value.findings
    assert (finding.code, finding.location.line if finding.location else 0) == (code, 2)
    assert says in " ".join((finding.message, *finding.notes))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("chat: ~/models/Qwen3-8B-Q8_0.gguf", "below servers: `servers: {chat: "),
        ("servers: {chat: {ngl: 99}}", "write n_gpu_layers instead of ngl"),
        ("servers: {}", "launch add FILE.gguf"),
        ("engines: {default: /bin/true}\nservers: {chat: ~/models/Qwen3-8B-Q8_0.gguf}", "name a llama-server"),
    ],
)
def test_a_text_that_will_not_do(home: Path, text: str, says: str) -> None:
    """The way on is said."""
    with pytest.raises(LaunchError) as caught:
        compiled(home, text).require()
    assert any(says in note for finding in caught.value.findings for note in finding.notes)


def test_an_engine_by_its_path(home: Path, llama_server: Path) -> None:
    """A binary of one's own is asked for its flags, and nothing that the packaged one's entry says is held of it."""
    done = compiled(home, f"engines: {{default: {{binary: {llama_server}}}}}\n{ONE_LINERS}")
    assert done.composed.fleet.engines["default"].dialect == "probe"
    assert done.composed.fleet.engines["default"].cpu_features is None
    assert compiled(home, f"engines: {{default: {llama_server}}}\n{ONE_LINERS}").engines["default"][0] == str(
        llama_server
    )


def test_devices_auto(home: Path) -> None:
    """A fleet that says nothing uses the cards there are, one that says none uses none; a named one has layers."""
    cards = "hardware: {gpus: {cuda0: {backend: cuda, vram_bytes: 24GiB}}}\n"
    text = cards + "servers: {a: ~/models/llama-f16.gguf, b: {file: ~/models/llama-f16.gguf, devices: []}}"
    done = compiled(home, text)
    assert (servers(done)["a"].devices, servers(done)["a"].n_gpu_layers) == (("cuda0",), "auto")
    assert servers(done)["b"].devices == ()
    assert "--device" in done.commands["a"].argv
    named = compiled(home, text.replace("devices: []", "devices: [cuda0]"))
    assert servers(named)["b"].n_gpu_layers == "auto"


def test_an_encoder_embeds_whoever_forgot_to_say_so(tmp_path: Path) -> None:
    """Also of a profile in groups: without it the server is asked for a completion, fails, and ends the fleet."""
    words = ["hardware=dev", "profile=dev", "+servers.e={model: bge_large_en_v1_5, quantization: f16, tier: hot}"]
    done = compile_fleet([*words, "servers.e.port=9", "servers.e.n_ctx_per_slot=512"])
    assert "--embeddings" in done.commands["e"].argv
    done = compile_fleet([*words, "servers.e.port=9", "servers.e.n_ctx_per_slot=512", "servers.e.embedding=false"])
    assert "--embeddings" not in done.commands["e"].argv


def test_models_on_another_disk(home: Path, tmp_path: Path) -> None:
    """`hardware.model_dir` is where relative paths begin; without the disk the plan is the same."""
    (home / "models").rename(tmp_path / "nas")
    text = f"hardware: {{model_dir: {tmp_path}/nas}}\nservers: {{chat: Qwen3-8B-Q8_0.gguf}}"
    before = compiled(home, text)
    assert before.commands["chat"].argv[2] == f"{tmp_path}/nas/Qwen3-8B-Q8_0.gguf"
    (tmp_path / "nas").rename(tmp_path / "unplugged")
    after = compiled(home, text)
    assert after.commands["chat"].argv == before.commands["chat"].argv
    assert [s.memory for s in after.plan.servers] == [s.memory for s in before.plan.servers]


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "servers: {}\n"])
def test_a_file_without_servers(home: Path, text: str) -> None:
    """The finding points to the file."""
    (found,) = (f for f in compiled(home, text).findings if f.severity == "error")
    assert (found.code, str(found.location)) == ("plan/no-servers", f"{home}/launch.yaml:1:1")


def test_a_draft_of_a_file(home: Path) -> None:
    """A text is compiled as if it stood in the file, there or not: with its paths, and without a trace."""
    text = "servers: {chat: models/llama-f16.gguf}\n"
    path = home / "launch.yaml"
    for _ in range(2):
        done = compile_fleet(["hardware=dev"], config_dirs=[path], draft=text)
        assert list(servers(done)) == ["chat"]
        with pytest.raises(LaunchError) as caught:
            compile_fleet(["hardware=dev"], config_dirs=[path], draft=text.replace("chat", "slots: 1}, x: {fil"))
        assert str(caught.value.findings[0].location).startswith(f"{path}:1:")
        assert not path.with_suffix(".lock").exists()
        path.write_text("servers: {other: models/bge-small-en-v1.5-f16.gguf}\n")


def test_long_times_to_live_are_told_apart(home: Path) -> None:
    """Each is its own tier, whose name ends in a unit's: no exponent, no digit less."""
    text = "".join(f"  s{i}: {{file: ~/models/llama-f16.gguf, ttl_s: {t}}}\n" for i, t in enumerate(LONG_S))
    fleet = compiled(home, f"servers:\n{text}").composed.fleet
    assert [fleet.tiers[s.tier].idle_timeout_s for s in fleet.servers.values()] == LONG_S
    assert all(PROCESS.fullmatch(s.tier) for s in fleet.servers.values())


def test_model_ids_with_dots_keep_their_places(home: Path) -> None:
    """One id is the beginning of the other: what is wrong with a server is said where it was written."""
    text = "servers:\n  org/m: {model: x}\n  org/m.1:\n    model: y\n    slots: 0\n"
    with pytest.raises(ConfigError) as caught:
        compiled(home, text, name="f.yaml")
    places = {f.key: f.location and f.location.line for f in caught.value.findings}
    assert places["servers.org-m-1.slots"] == 5


def test_many_model_ids() -> None:
    """Names are derived in a time that grows as their number does, not as its square (which would be 64 times)."""

    def spelled_s(count: int) -> float:
        located = LocatedTree()
        located.tree = {"servers": {f"org/m:{i}": {"tier": "hot"} for i in range(count)}}
        located.locations = {f"servers.org/m:{i}.tier": Location(file="f", line=i + 1) for i in range(count)}
        began = process_time()
        spell_out(located, "")
        took_s = process_time() - began
        assert list(located.tree["servers"])[-1] == f"org-m-{count - 1}"
        assert located.locations[f"servers.org-m-{count - 1}.tier"].line == count
        return took_s

    assert spelled_s(16_000) < 32 * min(spelled_s(2_000) for _ in range(3))


def test_one_fleet_file_at_a_time(home: Path) -> None:
    """The last that is named is the fleet; of the other it is said that nobody reads it."""
    for name in ("a", "b"):
        (home / f"{name}.yaml").write_text(f"servers: {{{name}: ~/models/llama-f16.gguf}}\n")
    done = compile_fleet(["hardware=dev"], config_dirs=[home / "a.yaml", home / "b.yaml"])
    assert list(servers(done)) == ["b"]
    (said,) = [f for f in done.findings if f.code == "config/unreadable"]
    assert (said.severity, said.location.file) == ("warning", str(home / "a.yaml"))


def test_a_fleet_file_is_read_whatever_profiles_there_are(home: Path) -> None:
    """A directory that was named before it has a profile of its name; the file is the fleet all the same."""
    (home / "own/profile").mkdir(parents=True)
    (home / "own/profile/dev.yaml").write_text("# @package _global_\nservers: {}\n")
    (home / "dev.yaml").write_text("servers: {mine: ~/models/llama-f16.gguf}\n")
    assert list(servers(compile_fleet(["hardware=dev"], config_dirs=[home / "own", home / "dev.yaml"]))) == ["mine"]


@pytest.mark.parametrize(
    "junk",
    [
        *("+servers.third={model: [a]}", "servers.chat.tier=[a]", "++servers.chat.port=[1]", "++ports={chat: [1]}"),
        *("++services={a: {port: [1]}}", "++runtime.front.port=[1]", "++servers.chat.draft={model: [a]}"),
        *("++tiers.hot=[1]", "++models={a: {b: [1]}}", "++hardware.gpus=[1]", "++engines.default=[1]"),
        *("+servers.other.n_ctx_per_slot={a: 1}", "+servers.other.slots=[1]"),
    ],
)
def test_what_cannot_be_looked_up_is_a_finding(home: Path, junk: str) -> None:
    """A list where a name or a port belongs: what is filled in looks for entries of that name."""
    text = "servers:\n  chat: ~/models/Qwen3-8B-Q8_0.gguf\n  other: {file: ~/models/llama-f16.gguf, ttl_s: 60}\n"
    with pytest.raises(ConfigError) as caught:
        compiled(home, text, junk, "include_warm=[chat]")
    assert {"config/type", "config/missing", "config/override"} & {f.code for f in caught.value.findings}


@pytest.mark.parametrize(
    "written",
    [
        "    n_ctx_per_slot: {a: 1}\n    embedding: true\n",
        "    n_ctx_per_slot: [1, 2]\n    embedding: true\n    slots: 1000000000000\n",
        "    projector: ~/models/mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf\nmodels: [a]\n",
    ],
)
def test_what_cannot_be_counted_or_added_to_is_a_finding(home: Path, written: str) -> None:
    """A mapping or a list where a number belongs, a list where the file's model goes: no traceback, whatever it is."""
    with pytest.raises(ConfigError) as caught:
        compiled(home, f"servers:\n  other:\n    file: ~/models/Qwen2.5-VL-7B-Instruct-f16.gguf\n{written}")
    assert "config/type" in {f.code for f in caught.value.findings}
