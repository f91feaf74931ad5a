"""Files: atomic writes, locks that name their owner, deployments written, compared and pruned."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import launcher
from launcher.errors import HostError
from launcher.files import (
    compare_deployment,
    drop_leftovers,
    make_key_file,
    packaged_dir,
    write_atomic,
    write_deployment,
)
from launcher.files.state import (
    LockHeldError,
    LockOwner,
    OwnedLock,
    deployment_state_dir,
    known_deployments,
    state_root,
)
from launcher.ir.deployment import Deployment, RenderedFile
from tests.children import killed_on_failure
from tests.locks import lock_owner


def deployment(**files: str) -> Deployment:
    """A deployment of text files; `__` in a name stands for `/`, and `run` is executable."""
    rendered = [
        RenderedFile(path=name.replace("__", "/"), text=text, executable=name == "run") for name, text in files.items()
    ]
    return Deployment(name="d", input_digest="sha256:0", files=tuple(sorted(rendered, key=lambda f: f.path)))


def test_an_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    """Content and mode are new, nothing else is left in the directory."""
    path = tmp_path / "f"
    write_atomic(path, "old and longer")
    write_atomic(path, b"new", mode=0o600)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """The target cannot be replaced: an error, the old content, no temporary file."""
    target = tmp_path / "d"
    (target / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="d"):
        write_atomic(target, "x")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


OWNER = LockOwner(pid=7, start_ticks=8, boot_id="b", deployment="d", deployment_dir="/g/d")


def test_what_a_killed_writer_left_goes_later(tmp_path: Path) -> None:
    """H21: our own temporary files of more than a minute ago; no directory, link's target or file of others."""
    for place in (tmp_path, tmp_path / "servers"):
        place.mkdir(exist_ok=True)
        killed = "import os, sys; from pathlib import Path; from launcher.files.atomic import stage\n"
        killed += "stage(Path(sys.argv[1]), b'x', 0o600); os.kill(os.getpid(), 9)"
        subprocess.run([sys.executable, "-c", killed, str(place / "a.json")], check=False)
    others = [tmp_path / name for name in (".vimrc.tmp", ".a.json.TOOLONG12.tmp", "b.abcdefgh.tmp", "a.json")]
    for path in others:
        path.touch()
    (tmp_path / ".d.abcdefgh.tmp").mkdir()
    (tmp_path / ".l.abcdefgh.tmp").symlink_to(tmp_path / "a.json")
    assert len(list(tmp_path.rglob(".a.json.????????.tmp"))) == 2
    drop_leftovers(tmp_path)
    assert len(list(tmp_path.rglob(".a.json.????????.tmp"))) == 2  # somebody may be writing them
    for path in tmp_path.rglob("*.tmp"):
        os.utime(path, (1, 1), follow_symlinks=False)
    drop_leftovers(tmp_path)
    left = {path.name for path in tmp_path.rglob("*")}
    assert left == {*(path.name for path in others), ".d.abcdefgh.tmp", "servers"}


def test_a_lock_names_its_owner_until_released(tmp_path: Path) -> None:
    """The second one is told who holds it; after release nobody does."""
    lock = OwnedLock(tmp_path / "lock")
    assert lock_owner(lock.path) is None
    lock.acquire(OWNER)
    with pytest.raises(LockHeldError, match="process 7") as caught:
        OwnedLock(lock.path).acquire(OWNER)
    assert caught.value.owner == OWNER
    assert lock_owner(lock.path) == OWNER
    lock.release()
    lock.release()
    assert lock_owner(lock.path) is None


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    """Killed with -9, the holder holds nothing, and a torn name does not confuse."""
    script = (
        "import sys, time; from pathlib import Path; from launcher.files.state import *;"
        "lock = OwnedLock(Path(sys.argv[1]));"
        "lock.acquire(LockOwner(pid=1, start_ticks=2, boot_id='b')); print(flush=True); time.sleep(60)"
    )
    path = tmp_path / "lock"
    with killed_on_failure(
        subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert lock_owner(path) == LockOwner(pid=1, start_ticks=2, boot_id="b")
        path.write_text("{torn")
        assert lock_owner(path) == LockOwner(pid=0, start_ticks=0, boot_id="")
        holder.kill()
    assert lock_owner(path) is None
    OwnedLock(path).acquire(OWNER)


def test_state_roots_are_looked_up_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """LAUNCH_STATE_DIR, the manifest, systemd, XDG, the home directory."""
    env = {"XDG_STATE_HOME": "/x", "STATE_DIRECTORY": "/sd:/other", "LAUNCH_STATE_DIR": "/l"}
    assert state_root("/m", env) == Path("/l")
    del env["LAUNCH_STATE_DIR"]
    assert state_root("/m", env) == Path("/m")
    assert state_root(None, env) == Path("/sd")
    del env["STATE_DIRECTORY"]
    assert state_root(None, env) == Path("/x/launch")
    monkeypatch.setenv("HOME", "/home/u")
    assert state_root(None, {"XDG_STATE_HOME": "relative"}) == Path("/home/u/.local/state/launch")


def test_state_directories_are_private_and_made_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0700 for the deployment; a name that is no directory name is refused."""
    monkeypatch.setenv("LAUNCH_STATE_DIR", str(tmp_path / "s"))
    assert not deployment_state_dir("epyc-full").exists()
    assert known_deployments() == ()
    made = deployment_state_dir("epyc-full", create=True)
    assert made.stat().st_mode & 0o777 == 0o700
    assert known_deployments() == ("epyc-full",)
    for name in ("../x", "", "a/b", ".", ".hidden", "a\n"):
        with pytest.raises(ValueError, match="not a deployment name"):
            deployment_state_dir(name)


def test_packaged_data_is_found_in_the_checkout() -> None:
    """Beside the package, where pyproject.toml is."""
    assert packaged_dir("conf") == Path(launcher.__file__).parent.parent / "conf"


def test_writing_twice_writes_once(tmp_path: Path) -> None:
    """The second call touches nothing; comparing says the same."""
    files = deployment(a="1\n", sub__b="2\n", run="#!/bin/sh\n")
    assert {d.kind for d in compare_deployment(files, tmp_path / "g")} == {"missing"}
    first = write_deployment(files, tmp_path / "g")
    assert [(d.path, d.kind) for d in first] == [("a", "missing"), ("run", "missing"), ("sub/b", "missing")]
    assert (tmp_path / "g/run").stat().st_mode & 0o111
    assert compare_deployment(files, tmp_path / "g") == ()
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "g").rglob("*")}
    assert write_deployment(files, tmp_path / "g") == ()
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "g").rglob("*")}


def test_a_comparison_says_what_differs(tmp_path: Path) -> None:
    """Changed, missing, extra and mode, with a unified diff of each; files of others are not looked at."""
    write_deployment(deployment(a="1\n2\n", b="x\n", gone="old\n", run="r\n"), tmp_path)
    (tmp_path / "b").unlink()
    (tmp_path / "run").chmod(0o644)
    (tmp_path / "theirs").write_text("not ours")
    found = {d.path: d for d in compare_deployment(deployment(a="1\n3\n", b="x\n", run="r\n"), tmp_path)}
    assert {p: d.kind for p, d in found.items()} == {"a": "changed", "b": "missing", "gone": "extra", "run": "mode"}
    assert found["a"].diff == ("--- a/a", "+++ b/a", "@@ -1,2 +1,2 @@", " 1", "-2", "+3")
    assert found["b"].diff[:2] == ("--- /dev/null", "+++ b/b")
    assert found["gone"].diff[:2] == ("--- a/gone", "+++ /dev/null")


def test_only_what_we_wrote_is_pruned(tmp_path: Path) -> None:
    """Stale files go with their emptied directories; an edited one and the user's own stay."""
    write_deployment(deployment(keep="k", sub__stale="s", edited="e"), tmp_path)
    (tmp_path / "edited").write_text("by hand")
    (tmp_path / "theirs.conf").write_text("drop-in")
    found = write_deployment(deployment(keep="k"), tmp_path)
    assert [(d.path, d.kind) for d in found] == [("edited", "extra"), ("sub/stale", "extra")]
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == [".launch-files.json", "edited", "keep", "theirs.conf"]


def test_a_symlink_is_replaced_not_followed(tmp_path: Path) -> None:
    """What a link in the directory points at is not ours to write."""
    outside = tmp_path / "outside"
    outside.write_text("theirs")
    (tmp_path / "g").mkdir()
    (tmp_path / "g/a").symlink_to(outside)
    write_deployment(deployment(a="ours"), tmp_path / "g")
    assert (outside.read_text(), (tmp_path / "g/a").read_text()) == ("theirs", "ours")


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../b", "", ".launch-files.json"])
def test_a_path_that_leaves_the_directory_is_refused(tmp_path: Path, path: str) -> None:
    """Nothing is written then."""
    bad = Deployment(name="d", input_digest="", files=(RenderedFile(path=path, text=""),))
    with pytest.raises(ValueError, match="not a path"):
        write_deployment(bad, tmp_path / "g")
    assert not (tmp_path / "g").exists()


names = st.text("abc", min_size=1, max_size=3)


@settings(deadline=None)
@given(st.dictionaries(names, st.text(max_size=20)), st.dictionaries(names, st.text(max_size=20)))
def test_what_is_written_compares_equal(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, str], after: dict[str, str]
) -> None:
    """Whatever lay there from an earlier deployment, writing the next one leaves exactly that."""
    directory = tmp_path_factory.mktemp("g")
    for content in (before, after):
        write_deployment(deployment(**content), directory)
    assert compare_deployment(deployment(**after), directory) == ()
    assert {p.name for p in directory.iterdir()} == {*after, ".launch-files.json"}


def refused(wanted: Deployment, directory: Path) -> str:
    """The message of the only finding when `wanted` cannot be written to `directory`."""
    with pytest.raises(HostError) as caught:
        write_deployment(wanted, directory)
    (finding,) = caught.value.findings
    assert (caught.value.exit_code, finding.code, finding.severity) == (6, "host/cannot-write", "error")
    assert finding.notes
    return finding.message


def below(directory: Path) -> list[str]:
    """Every path below `directory`, relative."""
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*"))


def test_what_cannot_be_written_is_a_finding_and_changes_nothing(tmp_path: Path) -> None:
    """A file where a directory should be, a directory where a file should be, a directory of the kernel's."""
    (tmp_path / "generated").write_text("a file")
    wanted = deployment(a="new", b="new", z__c="new")
    assert refused(wanted, tmp_path / "generated" / "d") == f"cannot write {tmp_path}/generated: File exists"
    assert refused(wanted, Path("/proc/1/d")) == "cannot write /proc/1/d: No such file or directory"
    target = tmp_path / "d"
    write_deployment(deployment(a="old"), target)
    (target / "b" / "mine").mkdir(parents=True)
    assert refused(wanted, target) == f"cannot write {target}/b: Is a directory"
    assert (target / "a").read_text() == "old"
    assert below(target) == [".launch-files.json", "a", "b", "b/mine"]


def test_a_full_disk_leaves_the_old_deployment_whole(tmp_path: Path) -> None:
    """The last of three files is larger than the process may write: the first two are as they were, nothing is new."""
    target = tmp_path / "generated" / "d"
    script = f"""
import resource, sys
from pathlib import Path
from launcher.errors import HostError
from launcher.files import write_deployment
from launcher.ir.deployment import Deployment, RenderedFile
files = [("a", "new"), ("sub/b", "new"), ("sub/deep/z", "z" * 100_000)]
rendered = tuple(RenderedFile(path=p, text=t) for p, t in files)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    write_deployment(Deployment(name="d", input_digest="sha256:0", files=rendered), Path({str(target)!r}))
except HostError as error:
    print(error.findings[0].message)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == f"cannot write {target}: File too large\n"
    assert below(tmp_path) == []
    write_deployment(deployment(a="old"), target)
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert (target / "a").read_text() == "old"
    assert below(target) == [".launch-files.json", "a"]


@pytest.mark.parametrize("root", ["/proc/1", "/etc/passwd"])
def test_a_state_directory_that_cannot_be_made_is_a_finding(root: str) -> None:
    """What is no directory, or takes no files, is named with the reason; and nobody holds a lock in it."""
    with pytest.raises(HostError, match=rf"cannot write {root}"):
        deployment_state_dir("d", root, create=True)
    assert lock_owner(Path(root) / "d" / "lock") is None


def test_a_symlinked_deployment_is_refused(tmp_path: Path) -> None:
    """Neither the deployment's directory nor one inside it may lead elsewhere; a parent that the user named may."""
    elsewhere, generated = tmp_path / "elsewhere", tmp_path / "generated"
    elsewhere.mkdir()
    (elsewhere / "keep").write_text("precious")
    generated.symlink_to(elsewhere)
    wanted = deployment(a="x", sub__keep="x")
    (generated / "d").symlink_to(tmp_path)
    assert "is a symlink" in refused(wanted, generated / "d")
    (generated / "d").unlink()
    (elsewhere / "d").mkdir()
    (elsewhere / "d" / "sub").symlink_to(elsewhere)
    assert f"{generated}/d/sub is a symlink" in refused(wanted, generated / "d")
    with pytest.raises(HostError, match="is a symlink"):
        compare_deployment(wanted, generated / "d")
    assert (elsewhere / "keep").read_text() == "precious"
    (elsewhere / "d" / "sub").unlink()
    write_deployment(wanted, generated / "d")
    assert (elsewhere / "d" / "sub" / "keep").read_text() == "x"


def test_pruning_does_not_follow_a_symlinked_directory(tmp_path: Path) -> None:
    """A stale file of ours that is reached through a link now is somebody else's."""
    target = tmp_path / "d"
    write_deployment(deployment(a="x", sub__b="x"), target)
    (target / "sub").rename(tmp_path / "moved")
    (target / "sub").symlink_to(tmp_path / "moved")
    assert compare_deployment(deployment(a="x"), target) == ()
    write_deployment(deployment(a="x"), target)
    assert (tmp_path / "moved" / "b").read_text() == "x"


def test_a_key_is_made_once(tmp_path: Path) -> None:
    """For its owner alone, in a directory that is made too; what is there, a dangling link too, is left alone."""
    path = tmp_path / "keys" / "servers.key"
    assert make_key_file(path)
    key = path.read_text()
    assert len(key.strip()) >= 43
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert not make_key_file(path)
    assert path.read_text() == key
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    assert not make_key_file(link)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["keys", "link", "servers.key"]
