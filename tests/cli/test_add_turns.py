"""`launch add` where a model does not fit beside the others: on machines that stand in for real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

import launcher.hardware
from launcher.cli.add import add, remove
from launcher.cli.init import init, try_out
from launcher.cli.joining import memory_of, neighbours
from launcher.compiler import Compilation, compile_fleet
from launcher.errors import ConfigError, PlanError
from launcher.ir.host import HostGpu
from launcher.ir.live import FleetStatus, ProcessStatus
from launcher.sizes import GIB
from tests.tinymodels.full_size import write_full_size

EIGHT, TWENTY, THIRTY_TWO = "llama-8b", "gpt-20b", "coder-32b"
SHAPES = {EIGHT: "llama-3.1-8b", TWENTY: "gpt-oss-20b", THIRTY_TWO: "qwen2.5-coder-32b"}
"""4.6, 11.4 and 17.6 GiB on a disk."""


class Place:
    """A folder with a fleet file, on a machine that is not this one."""

    def __init__(self, folder: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
        self.file, self.models, self._capsys = folder / "launch.yaml", models, capsys
        self.engine = ""

    def write(self, servers: str) -> None:
        """A fleet file by hand."""
        self.file.write_text(f"{self.engine}{servers}")

    def add(self, model: str, **options: Any) -> str:
        """`launch add`, and what it says."""
        asked: dict[str, Any] = {"file": None, "name": None, "roles": (), "dry_run": False} | options
        assert add([str(self.models[model])], **asked) == 0
        return self._capsys.readouterr().out

    def remove(self, name: str) -> str:
        """`launch remove`, and what it says."""
        assert remove(name, file=None) == 0
        return self._capsys.readouterr().out

    def servers(self) -> dict[str, dict[str, Any]]:
        """The file's servers."""
        found: dict[str, dict[str, Any]] = yaml.safe_load(self.file.read_text())["servers"]
        return found

    def plan(self) -> Compilation:
        """What the file compiles to, which has no errors."""
        compiled = compile_fleet([], config_dirs=[self.file])
        compiled.require()
        return compiled


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of real sizes, as sparse files."""
    folder = tmp_path_factory.mktemp("models")
    return {
        name: write_full_size(shape, folder, n_vocab=2000).rename(folder / f"{name}.gguf")
        for name, shape in SHAPES.items()
    }


@pytest.fixture
def place(
    tmp_path: Path,
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    llama_server: Path,
) -> Callable[..., Place]:
    """Makes a machine with so many GiB of RAM, and cards with so many each."""
    real = launcher.hardware.take_inventory()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def made(ram: int, *cards: int) -> Place:
        gpus = tuple(
            HostGpu(
                name=f"cuda{n}",
                backend="cuda",
                model=f"card {n}",
                vram_bytes=size * GIB,
                free_bytes=size * GIB - GIB // 2,
            )
            for n, size in enumerate(cards)
        )
        host = msgspec.structs.replace(
            real, gpus=gpus, nodes=(), features=(), ram_bytes=ram * GIB, available_bytes=ram * GIB
        )
        monkeypatch.setattr(launcher.hardware, "take_inventory", lambda: host)
        here = Place(tmp_path, models, capsys)
        if cards:
            listed = "".join(f"  CUDA{n}: card {n} ({s << 10} MiB, {s << 10} MiB free)\\n" for n, s in enumerate(cards))
            binary = tmp_path / "llama-server"
            says = f"[ $1 = --list-devices ] && printf 'Available devices:\\n{listed}' && exit"
            binary.write_text(f'#!/bin/sh\n{says}\nexec {llama_server} "$@"\n')
            binary.chmod(0o755)
            monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
            here.engine = f"engines: {{default: {{binary: {binary}, dialect: b10434}}}}\n"
        return here

    return made


@pytest.mark.parametrize(
    ("cards", "turns", "devices"),
    [((24,), {"coder-32b", "gpt-20b", "llama-8b"}, ("cuda0",)), ((24, 24), set(), ("cuda0", "cuda1"))],
    ids=["one card", "two cards"],
)
def test_init_on_cards(place: Callable[..., Place], cards: tuple[int, ...], turns: set[str], devices: object) -> None:
    """Every layer is on a card, in turns where they do not fit together; nothing is found in what it wrote."""
    here = place(96, *cards)
    folder = next(iter(here.models.values())).parent
    assert init([folder], file=None, dry_run=False, usual=False) == 0
    compiled = here.plan()
    assert {name for name, server in here.servers().items() if server.get("exclusive") == "turns"} == turns
    for server in compiled.plan.servers:
        assert server.settings.devices == devices
        assert server.settings.n_gpu_layers == server.model.architecture.n_layer + 1
    assert [f.code for f in compiled.findings if f.severity != "note" and f.code != "cpu/oversubscribed"] == []
    assert len(here.file.read_text().splitlines()) <= 40


def test_beside_the_others(place: Callable[..., Place]) -> None:
    """Where there is room it is always up, and nobody else's lines change."""
    here = place(64)
    here.write(f"servers:\n  chat: {here.models[EIGHT]}  # mine\n")
    before = here.file.read_text()
    assert "always up" in here.add(TWENTY)
    assert here.file.read_text().startswith(before)
    assert {s.name: s.starts for s in here.plan().plan.servers} == {"chat": "boot", TWENTY: "boot"}


@pytest.mark.parametrize("machine", [(30,), (96, 24)], ids=["ram", "card"])
def test_in_turns_and_away_again(place: Callable[..., Place], machine: tuple[int, ...]) -> None:
    """A new group, with whom it must; then the same group; without them the first is as it was, and always up."""
    here = place(*machine)
    here.write(f"servers:\n  # the big one\n  chat: {here.models[THIRTY_TWO]}  # mine\n")
    before = here.file.read_text()
    shown = here.add(TWENTY, dry_run=True)
    assert here.file.read_text() == before
    assert "one at a time in the group turns, with chat, from now on in it: chat" in shown
    said = here.add(TWENTY)
    assert here.file.read_text() in shown
    assert "takes turns:" in said
    assert "# launch add: they do not fit together" in here.file.read_text()
    assert "# mine" in here.file.read_text()
    added = here.servers()
    assert added["chat"] == {"file": str(here.models[THIRTY_TWO]), "exclusive": "turns"}
    assert (added[TWENTY]["exclusive"], added[TWENTY]["tier"]) == ("turns", "warm")
    assert [s.name for s in here.plan().plan.servers if s.initial] == ["chat"]
    third = here.add(EIGHT)
    assert here.servers()["chat"] == added["chat"]
    assert "from now on" not in third
    here.plan()
    here.remove(EIGHT)
    here.remove(TWENTY)
    assert here.servers() == {"chat": {"file": str(here.models[THIRTY_TWO])}}
    assert here.file.read_text().count("#") == before.count("#")


def test_the_last_of_a_group_is_always_up(place: Callable[..., Place]) -> None:
    """Whoever was there first is removed: who took turns with it has the memory for itself."""
    here = place(30)
    here.write(f"servers:\n  chat: {here.models[THIRTY_TWO]}\n")
    here.add(TWENTY)
    here.remove("chat")
    assert set(here.servers()[TWENTY]) == {"file", "n_ctx_per_slot"}
    assert ", always up; " in here.file.read_text()
    assert [s.initial for s in here.plan().plan.servers] == [True]
    here.write(
        "servers:\n  a: {file: %s, exclusive: night}\n  b: {file: %s, exclusive: night}\n" % ((here.models[EIGHT],) * 2)
    )
    assert "a is the last of the group night" in here.remove("b")


def test_a_card_that_somebody_wrote(place: Callable[..., Place]) -> None:
    """No driver tells how much of it is free: the plan's word holds."""
    here = place(96)
    card = "hardware: {gpus: {vulkan0: {backend: vulkan, vram_bytes: 24GiB}}}\n"
    here.write(f"{card}servers:\n  chat: {{file: {here.models[THIRTY_TWO]}, devices: [vulkan0]}}\n")
    assert "with chat" in here.add(TWENTY)


def test_fits_nowhere(place: Callable[..., Place]) -> None:
    """It says what it needs, what there is, what the plan says, and the file is untouched."""
    here = place(16)
    here.write(f"servers:\n  chat: {here.models[EIGHT]}\n")
    before = here.file.read_text()
    with pytest.raises(PlanError) as caught:
        here.add(THIRTY_TWO)
    first, *others = caught.value.findings
    assert first.code == "author/does-not-fit"
    assert "GiB with the shortest context, and the fleet can leave it" in first.message
    assert {(f.code, str(f.location)) for f in others} == {("plan/ram-over-budget", "this machine")}
    assert here.file.read_text() == before


def test_what_a_person_wrote_is_not_changed_unasked(place: Callable[..., Place]) -> None:
    """Its own group is a person's word: the refusal has the command that does it all the same, and it does."""
    here = place(30)
    here.write(f"servers:\n  chat:\n    file: {here.models[THIRTY_TWO]}\n    exclusive: null  # never\n")
    before = here.file.read_text()
    with pytest.raises(PlanError) as caught:
        here.add(TWENTY)
    assert caught.value.findings[0].notes[1] == (
        f"it would fit in turns with chat: launch add {here.models[TWENTY]} --turns-with chat"
    )
    assert here.file.read_text() == before
    here.add(TWENTY, mates=("chat",))
    assert here.servers()["chat"]["exclusive"] == "turns"
    assert "# never" in here.file.read_text()
    here.plan()
    with pytest.raises(ConfigError, match="has no server nobody"):
        here.add(EIGHT, mates=("nobody",))


def test_an_entry_that_is_not_edited(place: Callable[..., Place]) -> None:
    """Written in a way of its own: what to write there by hand."""
    here = place(30)
    here.write(f"servers:\n  chat: &c\n    {{file: {here.models[THIRTY_TWO]},\n     slots: 2}}\n")
    before = here.file.read_text()
    with pytest.raises(ConfigError, match="written in a way that is not edited") as caught:
        here.add(TWENTY)
    assert "write `exclusive: turns` there by hand" in caught.value.findings[0].notes[0]
    assert here.file.read_text() == before


def test_paths_from_the_file_on(place: Callable[..., Place]) -> None:
    """What the file names as it lies beside it is found when another is added; where it is away, the lock knows it."""
    here = place(64)
    (here.file.parent / "chat.gguf").symlink_to(here.models[EIGHT])
    here.write("servers:\n  chat: chat.gguf\n")
    here.plan()
    (here.file.parent / "chat.gguf").unlink()
    here.add(TWENTY)
    assert set(here.servers()) == {"chat", TWENTY}


def test_a_fleet_that_runs_takes_its_own_memory(place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch) -> None:
    """What its servers hold now is not taken a second time."""
    here = place(64)
    here.write(f"servers:\n  chat: {here.models[THIRTY_TWO]}\n")
    plan = here.plan().plan
    (chat,) = plan.servers
    held = sum(m.committed_bytes for m in chat.memory)
    real = launcher.hardware.take_inventory()
    busy = msgspec.structs.replace(real, available_bytes=real.ram_bytes - held - 10 * GIB)
    monkeypatch.setattr(launcher.hardware, "take_inventory", lambda: busy)
    around = neighbours(here.plan(), here.file.read_text())
    idle = memory_of(plan, busy, around).ram
    status = FleetStatus(
        deployment=plan.deployment,
        input_digest="",
        runtime_pid=1,
        front=None,
        ready=True,
        processes=(ProcessStatus(name="chat", kind="server", state="ready", port=1, pid=1),),
    )
    monkeypatch.setattr("launcher.cli.joining.offline_status", lambda _: status)
    assert memory_of(plan, busy, around).ram - idle == held


def test_what_still_names_who_is_removed(place: Callable[..., Place], capsys: pytest.CaptureFixture[str]) -> None:
    """The server goes as it was asked to, and what the file lacks then is said; what was wrong before is no news."""
    here = place(64)
    here.write(f"servers:\n  chat: {here.models[EIGHT]}\n  other: {here.models[TWENTY]}\nrouting: {{default: chat}}\n")
    assert remove("chat", file=None) == 0
    assert "launch.yaml:3:20: error[config/" in capsys.readouterr().err
    assert list(here.servers()) == ["other"]
    here.write(f"servers:\n  other: {here.models[TWENTY]}\n")
    assert remove("other", file=None) == 0
    assert capsys.readouterr().err == ""


def test_words_that_mean_nothing_are_refused(place: Callable[..., Place]) -> None:
    """A name that is taken is not made another one unsaid, one without letters is none, and so on."""
    here = place(64)
    here.write(f"servers:\n  chat: {here.models[EIGHT]}\n")
    before = here.file.read_text()
    for options, words in (
        ({"name": "chat"}, "--name chat: launch.yaml has that name already"),
        ({"name": " "}, "--name: a name has letters"),
        ({"roles": ("",)}, "--role: a name has letters"),
        ({"file": here.file.with_name("new.txt")}, "does not end in .yaml"),
        ({"faces": ("x,t=2024-99-99",)}, "'2024-99-99' is no value"),
        ({"faces": ("x,t=.nan",)}, "'.nan' is no value"),
    ):
        with pytest.raises(ConfigError, match=words):
            here.add(TWENTY, **options)
    assert here.add(EIGHT, name="other") == "launch.yaml has chat already: nothing is changed\n"
    assert here.file.read_text() == before
    assert not here.file.with_name("new.txt").exists()


def test_who_saves_meanwhile_is_not_overwritten(place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch) -> None:
    """An editor saves while it is planned: refused, and what was saved stays."""
    here = place(64)
    here.write(f"servers:\n  chat: {here.models[EIGHT]}\n")
    saved = here.file.read_text() + "# mine\n"

    def slow(text: str, target: Path) -> Compilation:
        here.file.write_text(saved)
        return try_out(text, target)

    monkeypatch.setattr("launcher.cli.joining.try_out", slow)
    with pytest.raises(ConfigError, match="was changed meanwhile"):
        here.add(TWENTY)
    assert here.file.read_text() == saved
