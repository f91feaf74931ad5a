"""Install and uninstall in a tree: what is written, what is refused, what stays; hypothesis plays the operator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import HostError
from launcher.install import Layout, Systemd, install, plan_changes, plan_removal, read_record, uninstall
from launcher.install.changes import process_lines
from launcher.install.unit_text import exec_argv
from launcher.ir.deployment import Deployment, RenderedFile
from tests.launched import launched

TEXTS = st.text("ab=\n#%", max_size=12)
NAMES = st.sampled_from(
    ["systemd/launch-a.service", "systemd/launch-hot.target", "polkit/50-launch-a.rules", "fleet.json", "commands/a.sh"]
)
FILES = st.dictionaries(NAMES, TEXTS, max_size=5)
UNIT = "[Service]\nExecStart=/bin/true\n"


def deployment(files: dict[str, str], name: str = "d") -> Deployment:
    """A deployment of these texts."""
    rendered = (RenderedFile(path=p, text=t, executable=p.startswith("commands/")) for p, t in sorted(files.items()))
    return Deployment(name=name, input_digest="sha256:0", files=tuple(rendered))


def put(path: Path, data: bytes, mode: int) -> None:
    """As the command does it."""
    Layout(root=Path("/")).tree.write(path, data, mode)


def nothing(units: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """In a tree no runtime is asked."""
    raise AssertionError(units)


def apply(value: Deployment, layout: Layout, *, force: bool = False) -> int:
    """Install into a tree; number of files that changed."""
    changes = plan_changes(value, layout, force=force)
    install(changes, layout, Systemd(layout), put, take_over=nothing)
    return len(changes.changes)


def tree(root: Path) -> dict[str, bytes]:
    """Every file below `root`."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@settings(max_examples=60, deadline=None)
@given(st.lists(FILES, min_size=1, max_size=4))
def test_any_sequence_of_installs(tmp_path_factory: pytest.TempPathFactory, states: list[dict[str, str]]) -> None:
    """After each install the tree is that deployment and nothing else of ours; twice writes nothing; then no trace."""
    root = tmp_path_factory.mktemp("root")
    layout = Layout(root=root)
    (root / "etc/systemd/system/launch-a.service.d").mkdir(parents=True)
    (root / "etc/systemd/system/launch-a.service.d/mine.conf").write_text("mine")
    (root / "etc/systemd/system/launch-theirs.service").write_text("theirs")
    before, folders = tree(root), {p for p in root.rglob("*") if p.is_dir()}
    for files in states:
        # the boot links of a target are systemctl's work, which test_fleet sees in a booted systemd
        plain = {p: t.replace("WantedBy", "") for p, t in files.items()}
        apply(deployment(plain), layout)
        stamps = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
        assert apply(deployment(plain), layout) == 0
        assert {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()} == stamps
        found = {k: v for k, v in tree(root).items() if k not in before and not k.startswith("var/lib/launch")}
        installed = {p: t for p, t in plain.items() if not p.startswith("commands/")}
        assert sorted(found.values()) == sorted(t.encode() for t in installed.values())
    record = read_record("d", layout)
    assert record is not None
    report = uninstall(plan_removal(record, layout), layout, Systemd(layout))
    assert report.stopped == ()
    assert tree(root) == before
    assert {p for p in root.rglob("*") if p.is_dir()} == folders


@given(st.lists(st.sampled_from(["# c", "; c", "", "  ", "A=1", "B=#2"]), max_size=8))
def test_comments_do_not_restart(lines: list[str]) -> None:
    """Only lines that the process is started with count as a change of a unit."""
    text = "\n".join(lines).encode()
    assert process_lines(text).decode().split("\n") == [
        line for line in lines if line in ("A=1", "B=#2")
    ] or not process_lines(text)
    assert process_lines(b"[Unit]\nAfter=b.service\n[Service]\n" + text) == process_lines(
        b"[Service]\n" + text + b"\n[Install]\nA=1"
    )


def test_foreign_and_edited_files_are_in_the_way(tmp_path: Path) -> None:
    """A unit of somebody else, of another deployment, or one that was edited, stays; --force takes ours."""
    layout = Layout(root=tmp_path)
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    (units / "launch-a.service").write_text("theirs")
    value = deployment({"systemd/launch-a.service": UNIT})
    with pytest.raises(HostError) as refused:
        apply(value, layout, force=True)
    assert [f.code for f in refused.value.findings] == ["install/foreign-file"]
    (units / "launch-a.service").unlink()
    apply(value, layout)
    other = plan_changes(deployment({"systemd/launch-a.service": "x"}, "other"), layout)
    assert "written by deployment d" in other.findings[0].message
    (units / "launch-a.service").write_text("edited")
    newer = deployment({"systemd/launch-a.service": UNIT + "Nice=1\n"})
    assert [(f.code, f.severity) for f in plan_changes(newer, layout).findings] == [("install/hand-edited", "error")]
    assert [f.severity for f in plan_changes(newer, layout, force=True).findings] == ["warning"]
    record = read_record("d", layout)
    assert record is not None
    with pytest.raises(HostError):
        uninstall(plan_removal(record, layout), layout, Systemd(layout))
    assert (units / "launch-a.service").read_text() == "edited"


def test_a_crash_in_between(tmp_path: Path) -> None:
    """Whatever write fails, the next install succeeds and ends in the same tree."""
    value = deployment({"systemd/launch-a.service": UNIT, "polkit/50-launch-a.rules": "gate", "fleet.json": "{}"})
    good = Layout(root=tmp_path / "good")
    apply(value, good)
    for failing in range(6):
        layout = Layout(root=tmp_path / f"crash{failing}")
        apply(deployment({"systemd/launch-a.service": "old", "polkit/50-launch-a.rules": "old"}), layout)
        count = 0

        def torn(path: Path, data: bytes, mode: int, failing: int = failing) -> None:
            nonlocal count
            count += 1
            if count > failing:
                raise OSError("no space left")
            put(path, data, mode)

        changes = plan_changes(value, layout)
        try:
            install(changes, layout, Systemd(layout), torn, take_over=nothing)
        except OSError:
            assert failing < 5
        apply(value, layout)
        assert tree(layout.root) == tree(good.root)


def launch(*words: str, cwd: Path, code: int) -> str:
    """`launch` as a process; everything that it said."""
    done = launched(words, cwd=cwd, env=os.environ | {"HOME": str(cwd)})
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


DEV = ("hardware=dev", "profile=dev")


def test_programs_that_are_found_by_their_name(tmp_path: Path) -> None:
    """A service's command may be a bare name: systemd says that this machine lacks it, and the tree may have it."""
    said = launch(
        "install", "hardware=epyc", "profile=hot_only", "--dry-run", f"--root={tmp_path}", cwd=tmp_path, code=0
    )
    assert "warning[install/verify]" in said
    assert "document-formalizer" in said


def test_the_command_in_a_tree(tmp_path: Path) -> None:
    """--root: verified, shown, written, enabled, nothing the second time; a stale or damaged plan is refused."""
    root = tmp_path / "root"
    words = ("install", *DEV, f"--root={root}")
    dry = launch(*words, "--dry-run", cwd=tmp_path, code=0)
    assert "+ /etc/systemd/system/launch-assistant.service" in dry
    assert "+ExecStart=" in dry
    assert not root.exists()
    launch(*words, cwd=tmp_path, code=0)
    wanted = root / "etc/systemd/system/multi-user.target.wants"
    assert sorted(link.name for link in wanted.iterdir()) == ["launch-dev-dev.service", "launch-hot.target"]
    rules = (root / "etc/polkit-1/rules.d/50-launch-dev-dev.rules").read_text()
    assert '"launch-assistant.service",' in rules
    again = launch(*words, cwd=tmp_path, code=0)
    assert "0 files written, 0 removed" in again

    absent = "engines.default.binary=/nowhere/llama-server"  # as on a laptop: what changes is seen all the same
    shown = launch(*words, absent, "engines.default.dialect=b10068", "--dry-run", cwd=tmp_path, code=0)
    assert "~ /etc/systemd/system/launch-assistant.service  restarts\n" in shown
    assert "+ExecStart=/nowhere/llama-server" in shown
    gone = launch("uninstall", "dev-dev", f"--root={root}", "--dry-run", cwd=tmp_path, code=0)
    assert "- /etc/systemd/system/launch-assistant.service\n" in gone
    assert "ExecStart" not in gone  # the names of what goes, not its text

    launch("render", *DEV, cwd=tmp_path, code=0)
    stale = launch(*words, "servers.assistant.slots=1", cwd=tmp_path, code=8)
    assert "install/stale" in stale
    bundle = tmp_path / "generated/dev-dev"
    assert "0 files written" in launch("install", str(bundle), f"--root={root}", cwd=tmp_path, code=0)
    with (bundle / "systemd/launch-assistant.service").open("a") as unit:
        unit.write("Nice=1\n")
    assert "install/damaged" in launch("install", str(bundle), f"--root={root}", cwd=tmp_path, code=2)

    assert "install/not-installed" in launch("uninstall", "nobody", f"--root={root}", cwd=tmp_path, code=6)
    launch("uninstall", "dev-dev", f"--root={root}", cwd=tmp_path, code=0)
    assert tree(root) == {}
    assert not wanted.exists()


def test_a_users_own_units(tmp_path: Path) -> None:
    """--user: below the home, verified by systemd as a user's, no setting that needs root."""
    root = tmp_path / "root"
    launch("install", *DEV, "--user", f"--root={root}", cwd=tmp_path, code=0)
    folder = root / str(tmp_path)[1:] / ".config/systemd/user"
    text = (folder / "launch-assistant.service").read_text()
    runtime = (folder / "launch-dev-dev.service").read_text()
    assert "serve --no-color --units launch --user %h/.config/launch/dev-dev" in runtime
    assert not list(root.rglob("*.rules"))
    for word in ("DynamicUser", "OOMScoreAdjust", "ProtectSystem", "LimitMEMLOCK", "\nUser="):
        assert word not in text + runtime
    assert "WantedBy=default.target" in (folder / "launch-hot.target").read_text()
    launch("render", *DEV, cwd=tmp_path, code=0)
    refused = launch("install", "generated/dev-dev", "--user", f"--root={root}", cwd=tmp_path, code=2)
    assert "install/scope" in refused


def test_bad_units_are_refused(tmp_path: Path) -> None:
    """What systemd complains of, and a sandbox that is weaker than promised, is not installed."""
    from launcher.install import verify_units

    weak = "[Unit]\nX-Launch-Exposure=1.0\n[Service]\nExecStart=/bin/true\nNoNewPrivileges=yes\n"
    value = deployment({"systemd/launch-a.service": "[Service]\nExecStart=/bin/true\nNonsense=1\n"})
    assert {f.code for f in verify_units(value, Layout())} == {"install/verify"}
    assert {f.code for f in verify_units(deployment({"systemd/launch-a.service": weak}), Layout())} == {
        "install/exposure"
    }
    absent = deployment({"systemd/launch-a.service": "[Service]\nExecStart=/opt/x/absent\n"})
    (finding,) = verify_units(absent, Layout())
    assert "not executable" in finding.message
    assert "engines.NAME.binary=PATH" in finding.notes[0]
    runtime = deployment({"systemd/launch-a.service": "[Service]\nExecStart=/opt/x/launch serve\n"})
    assert "deploy.launch=PATH" in verify_units(runtime, Layout())[0].notes[0]
    assert verify_units(absent, Layout(), {Path("/opt/x/absent")}) == ()
    (finding,) = verify_units(deployment({"systemd/launch-a+b.service": weak}), Layout())[:1]
    assert "profile.name" in finding.notes[0]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/a/server --key %d/key", ("/a/server", "--key", "/run/credentials/x/key")),
        ("/a/100%%$ %%d $$5 50%%", ("/a/100%$", "%d", "$5", "50%")),
        ("/a/server %h", None),
        ("/a/server ${HOME}", None),
        ("/a/server 5%", None),
        ("/a/server %%%", None),
    ],
)
def test_what_a_unit_says_that_it_runs(command: str, words: tuple[str, ...] | None) -> None:
    """What systemd makes of `%%`, `$$` and the credentials' directory; what else it would replace is its own to say."""
    assert exec_argv([f"[Service]\nExecStart={command}\n"], "/run/credentials/x") == words
