"""Bundles, records and trees that somebody else made: nothing outside the root is written, followed or removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.base.tree import Tree
from launcher.errors import ConfigError, HostError, LaunchError
from launcher.install import Layout, Systemd, install, plan_changes, plan_removal, read_record, uninstall
from launcher.install.ownership import Record, encode_record
from launcher.ir.deployment import Deployment, RenderedFile, content_digest

LAUNCH = Path(sys.executable).with_name("launch")
UNITS = "systemd/launch-a.service"
BUNDLE = {UNITS: "[Service]\nExecStart=/bin/true\n", "systemd/launch-a.target": "[Unit]\n", "fleet.json": "{}"}
PLACES = (
    *("etc", "etc/systemd", "etc/systemd/system", "etc/launch", "etc/launch/d", "etc/polkit-1", "var", "var/lib"),
    *("var/lib/launch", "var/lib/launch/installed", "etc/systemd/system/launch-a.service", "etc/launch/d/fleet.json"),
)
"""What a hostile tree may have a link in place of."""

LINKS = st.dictionaries(
    st.sampled_from(PLACES), st.sampled_from(["{out}", "../../out", "/proc/self/root{out}"]), max_size=3
)
FORGED = (
    *("../../etc/ssh.service", "/../hostfile", "/etc/passwd", "relative", "/etc/systemd/system/../x-y.service", "/"),
    *("/etc/systemd/system//launch-a.service", "/etc/systemd/system/ssh.service", "/etc/sysusers.d/basic.conf"),
    *("/etc/systemd/system/systemd-x.service", "/etc/launch/other/fleet.json", "/etc/systemd/system/a\0b-c.service"),
)
FOREIGN = (
    *("systemd/ssh.service", "systemd/systemd-logind.service", "systemd/user-1000.slice", "systemd/launch-a.socket"),
    *("systemd/launch-a.service.d", "polkit/50-default.rules", "polkit/launch-a.js", "sysusers/root.conf", "a\0b"),
    *("containers/launch-a.service", "../launch-a.service", "systemd/../launch-a.service", "systemd/a b-c.service"),
)


def bundle(files: dict[str, str] = BUNDLE, name: str = "d") -> Deployment:
    """A deployment of these texts."""
    return Deployment(
        name=name, input_digest="", files=tuple(RenderedFile(path=p, text=t) for p, t in sorted(files.items()))
    )


def put(value: Deployment, root: Path) -> None:
    """Install into a tree. Raises LaunchError, OSError."""
    layout = Layout(root=root)
    install(plan_changes(value, layout), layout, Systemd(layout), layout.tree.write, take_over=None)


def take_away(root: Path, name: str = "d") -> None:
    """Uninstall from a tree. Raises LaunchError, OSError."""
    layout = Layout(root=root)
    record = read_record(name, layout)
    if record is not None:
        uninstall(plan_removal(record, layout, force=True), layout, Systemd(layout))


def outside(directory: Path) -> dict[str, bytes]:
    """A neighbour of a tree that must not change, with files where ours would go."""
    for name in ("launch-a.service", "fleet.json", "d.json", "system/launch-a.service", "launch/installed/d.json"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("theirs")
    return content(directory)


def content(directory: Path) -> dict[str, bytes]:
    """Every file and link below `directory`."""
    return {
        str(p.relative_to(directory)): os.fsencode(p.readlink()) if p.is_symlink() else p.read_bytes()
        for p in sorted(directory.rglob("*"))
        if p.is_symlink() or p.is_file()
    }


@settings(max_examples=60, deadline=None)
@given(LINKS, st.booleans())
def test_no_link_leads_out_of_a_tree(
    tmp_path_factory: pytest.TempPathFactory, links: dict[str, str], late: bool
) -> None:
    """Links to a neighbour in place of any directory or file, before an install or after: the neighbour stays."""
    base = tmp_path_factory.mktemp("hostile")
    root, out = base / "root", base / "out"
    root.mkdir()
    before = outside(out)
    if late:
        put(bundle(), root)
    for place, target in links.items():
        path = root / place
        if any(part.is_symlink() for part in path.parents):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            path.rename(base / f"moved-{len(list(base.iterdir()))}")
        path.unlink(missing_ok=True)
        path.symlink_to(target.format(out=out))
    for step in (put, take_away):
        try:
            step(bundle(), root) if step is put else take_away(root)
        except (LaunchError, OSError):
            continue
        finally:
            assert content(out) == before


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_record_removes_nothing(tmp_path: Path, name: str) -> None:
    """H2: whatever a record names beyond its deployment's own files, it is no record."""
    (tmp_path / "hostfile").write_text("x")
    root = tmp_path / "root"
    record = Record(deployment="d", input_digest="", files={name: content_digest(b"x")})
    (root / "var/lib/launch/installed").mkdir(parents=True)
    (root / "var/lib/launch/installed/d.json").write_bytes(encode_record(record))
    with pytest.raises(ConfigError) as refused:
        take_away(root)
    assert refused.value.findings[0].code == "install/damaged"
    assert (tmp_path / "hostfile").read_text() == "x"


def test_a_record_is_of_its_own_deployment(tmp_path: Path) -> None:
    """H2: `../../../victim` as deployment, in a record and on the command line."""
    root = tmp_path / "root"
    records = root / "var/lib/launch/installed"
    records.mkdir(parents=True)
    (tmp_path / "victim").mkdir()
    (records / "d.json").write_bytes(encode_record(Record(deployment="../../../victim", input_digest="")))
    (records / "e.json").write_bytes(b"[" * 100_000)
    (records / "f.json").write_bytes(b"\xff\xfe")
    for name in ("d", "e", "f"):
        with pytest.raises(ConfigError, match="install/damaged"):
            take_away(root, name)
    with pytest.raises(ConfigError, match="install/foreign-name"):
        take_away(root, "../../../victim")
    argv = [LAUNCH, "uninstall", "d", "--root", root]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, "install/damaged" in done.stderr, "Traceback" in done.stderr) == (2, True, False)
    assert (tmp_path / "victim").is_dir()


@pytest.mark.parametrize("path", FOREIGN)
def test_a_bundle_has_its_own_names_only(tmp_path: Path, path: str) -> None:
    """H2: names of others' units and files are `install/foreign-name`, and nothing is written."""
    with pytest.raises((HostError, ConfigError)) as refused:
        put(bundle({**BUNDLE, path: "x"}), tmp_path)
    assert {f.code for f in refused.value.findings} == {"install/foreign-name"}
    assert content(tmp_path) == {}


def test_a_bundle_has_units_of_its_manifest_only(tmp_path: Path, rendered_bundle: dict[str, str]) -> None:
    """A unit of no server, a second prefix, and one that would replace a distribution's are refused."""
    assert [*plan_changes(bundle(rendered_bundle, "t-dev"), Layout(root=tmp_path)).findings] == []
    for extra in ("systemd/launch-other.service", "systemd/mine-a.service"):
        found = plan_changes(bundle({**rendered_bundle, extra: "x"}, "t-dev"), Layout(root=tmp_path)).findings
        assert {f.code for f in found} == {"install/foreign-name"}
    vendor = tmp_path / "usr/lib/systemd/system"
    vendor.mkdir(parents=True)
    (vendor / "launch-a.service").write_text("theirs")
    found = plan_changes(bundle(rendered_bundle, "t-dev"), Layout(root=tmp_path)).findings
    assert "would replace" in found[0].message


@pytest.mark.parametrize("name", ["../../../escape", "", ".", "..", "a/b", "a\n", "a" * 300])
def test_a_deployment_names_a_directory(tmp_path: Path, name: str) -> None:
    """H2: install of a bundle whose deployment is a path."""
    with pytest.raises(ConfigError):
        put(bundle(name=name), tmp_path / "root")
    assert content(tmp_path) == {}


def test_whose_links_are_followed_on_the_machine(tmp_path: Path) -> None:
    """Of the machine itself links of root and of ourselves lead on (/var may be one); the last step never does."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    tree = Tree(Path("/"))
    tree.write(tmp_path / "link/file", b"1", 0o640)
    assert ((tmp_path / "real/file").read_bytes(), (tmp_path / "real/file").stat().st_mode & 0o777) == (b"1", 0o640)
    (tmp_path / "real/to").symlink_to(tmp_path / "real/file")
    tree.write(tmp_path / "real/to", b"2", 0o600)
    assert ((tmp_path / "real/file").read_bytes(), (tmp_path / "real/to").read_bytes()) == (b"1", b"2")
    if os.geteuid() == 0:
        os.lchown(tmp_path / "link", 12345, 12345)
        with pytest.raises(OSError, match="symlink"):
            tree.read(tmp_path / "link/file")


@pytest.fixture(scope="module")
def rendered_bundle() -> dict[str, str]:
    """Units of a manifest with the one server `a`, and the manifest."""
    from tests.supervise.conftest import manifest, unit

    fleet = manifest(unit("a", ("/bin/true",), 8123, "/m"), deployment="t-dev")
    text = json.dumps(msgspec.to_builtins(fleet))
    return {
        "fleet.json": text,
        UNITS: "[Service]\n",
        "systemd/launch-t-dev.service": "",
        "systemd/launch-hot.slice": "",
    }
