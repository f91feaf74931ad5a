"""Reading files: syntax, positions, duplicate keys, headers, shadowing, what cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from launcher.config import groups
from launcher.config.yamltree import parse_yaml
from tests.config.conftest import Conf


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("slots: [1\n", "server/coder.yaml:2:1", "not valid YAML"),
        ("a:\n\tb: 1\n", "server/coder.yaml:2:1", "cannot start any token"),
        ("a: 'x\n", "server/coder.yaml:2:1", "unexpected end of stream"),
        ("a: b: c\n", "server/coder.yaml:1:5", "mapping values are not allowed"),
        ("- 1\n", "server/coder.yaml:1:1", "must be a mapping"),
        ("just words\n", "server/coder.yaml:1:1", "must be a mapping"),
        ("a: !!python/object:os.system {}\n", "server/coder.yaml:1:4", "unsupported tag"),
        ("a: !!int many\n", "server/coder.yaml:1:4", "does not fit its tag int"),
        ('a: !!int ""\n', "server/coder.yaml:1:4", "does not fit its tag int"),
        ('!!float "_": 1\n', "server/coder.yaml:1:1", "does not fit its tag float"),
        ("? [a]\n: 1\n", "server/coder.yaml:1:3", "a key must be a plain name"),
        ("a: &a [*a]\n", "server/coder.yaml:1:4", "an alias contains itself"),
        ("a: &a {<<: *a}\n", "server/coder.yaml:1:8", "<< needs a mapping"),
        ("a: 1\n--- \nb: 2\n", "server/coder.yaml:2:1", "another document"),
        ("a: \x00\n", "server/coder.yaml:1:4", "control characters"),
        ("a: " + "[" * 100_000, "server/coder.yaml:1:203", "nested too deeply"),
        (
            "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
            "server/coder.yaml:1:10",
            "too many values",
        ),
        (
            "a0: &a0 {k: 1}\n"
            + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12)),
            "server/coder.yaml:1:5",
            "too many values",
        ),
        (
            "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} [{{k: [*a{i - 1}]}}]\n" for i in range(1, 3000)),
            "server/coder.yaml:1:1",
            "too deeply",
        ),
    ],
    ids=lambda word: word[:40],
)
def test_bad_yaml_is_one_finding_at_its_place(conf: Conf, text: str, where: str, said: str) -> None:
    """What libyaml or we refuse is one `config/yaml` finding at its mark, and nothing that follows from it."""
    finding = conf.write({"server/coder.yaml": text}).finding()
    assert finding.code == "config/yaml"
    assert conf.where(finding) == where
    assert said in finding.message


def test_a_long_text_is_read_whole() -> None:
    """What is written out is no multiplication: ten thousand servers have more values than a small text may."""
    assert parse_yaml(f"a: [{'1,' * 120_000}]", file="f", prefix="").tree == {"a": [1] * 120_000}
    bomb = "a: &a [" + "1," * 60_000 + "]\nb: [*a, *a, *a]\n"
    (finding,) = parse_yaml(bomb, file="f", prefix="").findings
    assert "too many values" in finding.message


def test_a_tab_is_named(conf: Conf) -> None:
    """The note says that a tab is the reason."""
    finding = conf.write({"server/coder.yaml": "a:\n\tb: 1\n"}).finding()
    assert any("tab" in note for note in finding.notes)


def test_every_broken_file_is_reported_at_once(conf: Conf) -> None:
    """One broken file does not hide another, nor the mistakes on the command line."""
    conf.write({"server/coder.yaml": "a: [", "hardware/epyc.yaml": "b: [", "model/tiny.yaml": "c: ["})
    found = conf.findings("a=1,2", "servers.frontdor.slots=4", "servers.frontdoor.slots=x")
    assert sorted(f.code for f in found) == [
        "config/override",
        "config/type",
        "config/unknown-key",
        *["config/yaml"] * 3,
    ]


def test_duplicate_keys_are_errors_with_both_places(conf: Conf) -> None:
    """PyYAML keeps the last silently; here the second is the error and the first is named."""
    conf.write(
        {
            "server/coder.yaml": "model: tiny\nquantization: q8_0\ntier: hot\n"
            "draft:\n  n_max: 1\n  n_max: 2\nmodel: draft\n"
        }
    )
    found = [f for f in conf.findings() if f.code == "config/duplicate-key"]
    assert [(f.key, conf.where(f)) for f in found] == [
        ("servers.coder.draft.n_max", "server/coder.yaml:6:3"),
        ("servers.coder.model", "server/coder.yaml:7:1"),
    ]
    assert "server/coder.yaml:1:1" in found[1].notes[0]


def test_positions_are_of_values_and_of_the_keys_of_containers(conf: Conf) -> None:
    """A value is where it begins; a mapping or list where its key is; list items have their own."""
    at = conf.compose().sources.locations
    root = conf.root
    assert str(at["servers.frontdoor.slots"]) == f"{root}/server/frontdoor.yaml:6:8"
    assert str(at["servers.frontdoor.roles"]) == f"{root}/server/frontdoor.yaml:5:1"
    assert str(at["servers.frontdoor.roles.0"]) == f"{root}/server/frontdoor.yaml:5:9"
    assert str(at["servers.frontdoor"]) == f"{root}/server/frontdoor.yaml:1:1"
    assert str(at["runtime.front.port"]) == f"{root}/runtime/default.yaml:2:9"


def test_anchors_and_merge_keys_mean_what_yaml_says(conf: Conf) -> None:
    """`<<` brings keys in, written ones win, and no duplicate is seen in that."""
    text = "base: &base {slots: 1, threads: 3}\n<<: *base\nthreads: 4\n"
    parsed = parse_yaml(text, file="f", prefix="")
    assert parsed.tree == {"base": {"slots": 1, "threads": 3}, "threads": 4, "slots": 1}
    assert str(parsed.marks["slots"]) == "f:1:21"
    assert not parsed.findings


YAML_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(st.text(max_size=4), v, max_size=3)),
    max_leaves=10,
)
PLAIN = st.sampled_from(
    [
        "on",
        "no",
        "010",
        "0x1F",
        "1:30",
        "1e3",
        "1_000",
        ".5",
        "-.inf",
        "~",
        "null",
        "2020-01-01",
        "0o7",
        "+1",
        "1.",
        "y",
        "",
        "'1'",
    ]
)


@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,3}", fullmatch=True), YAML_VALUES, min_size=1, max_size=4), st.booleans()
)
def test_values_read_as_omegaconf_reads_them(tree: dict, flow: bool) -> None:
    """Any dumped tree reads back as plain Hydra would have it."""
    text = yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=True)
    expected = OmegaConf.to_container(OmegaConf.create(text))
    parsed = parse_yaml(text, file="f", prefix="")
    assert not parsed.findings
    assert repr(parsed.tree) == repr(expected)


@given(PLAIN)
def test_bare_words_read_as_omegaconf_reads_them(word: str) -> None:
    """YAML 1.1's surprises are the same surprises."""
    text = f"a: {word}\n"
    assert repr(parse_yaml(text, file="f", prefix="").tree) == repr(OmegaConf.to_container(OmegaConf.create(text)))


@given(st.text() | st.text(alphabet="ab:-[]{}&*!|>'\"#%@?, \n\t<0=~") | st.binary().map(lambda b: b.decode("latin-1")))
def test_junk_yaml_never_raises(text: str) -> None:
    """Any text is a tree or findings with a place."""
    parsed = parse_yaml(text, file="f", prefix="p")
    assert isinstance(parsed.tree, dict)
    assert all(f.location is not None and f.notes for f in parsed.findings)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("# A comment first\n# @package servers.coder\n", "ignored below another comment"),
        ("# @package\n", "not a package header"),
        ("# @package a b\n", "not a package header"),
        ("# @package servers..coder\n", "not a package header"),
        ("# @package servers._name_\n", "not expanded"),
    ],
)
def test_a_wrong_package_header_is_a_finding(conf: Conf, header: str, said: str) -> None:
    """A header that Hydra would ignore or misread is refused at its line."""
    finding = conf.write({"server/coder.yaml": header + "model: tiny\n"}).finding()
    assert finding.code == "config/package-header"
    assert said in finding.message
    assert conf.where(finding) == f"server/coder.yaml:{header.count(chr(10))}:1"


def test_an_entry_without_a_header_lands_under_its_name(conf: Conf) -> None:
    """A newcomer's file just works; engine/ files become the default engine."""
    conf.write({"engine/mine.yaml": "binary: ./llama-server\ndialect: b10434\n"})
    composed = conf.compose("engine=mine")
    assert "coder" in composed.fleet.servers
    assert composed.fleet.engines["default"].binary == "./llama-server"


def test_an_entry_whose_file_name_has_a_dot_needs_a_header(conf: Conf) -> None:
    """A dot would start a new level."""
    text = (conf.root / "model/tiny.yaml").read_text()
    finding = conf.write({"model/tiny2.5.yaml": text}).finding()
    assert finding.code == "config/package-header"
    assert "tiny2_5.yaml" in finding.notes[0]
    conf.write({"model/tiny2.5.yaml": "# @package models.tiny2_5\n" + text})
    assert "tiny2_5" in conf.compose().fleet.models


def test_a_misspelled_package_is_located(conf: Conf) -> None:
    """`# @package server.x` makes an unknown top-level key, and the file that does it is shown."""
    conf.write({"server/coder.yaml": "# @package server.coder\nmodel: tiny\n"})
    finding = next(f for f in conf.findings() if f.code == "config/unknown-key")
    assert conf.where(finding) == "server/coder.yaml:1:1"
    assert "did you mean servers?" in finding.notes


def test_not_utf8_is_located(conf: Conf) -> None:
    """The place of the first byte that is not UTF-8."""
    finding = conf.write({"server/coder.yaml": b"model: tiny\ntitle: caf\xe9\n"}).finding()
    assert (finding.code, conf.where(finding)) == ("config/unreadable", "server/coder.yaml:2:11")
    assert "0xe9" in finding.message


def test_a_byte_order_mark_hides_no_header(conf: Conf) -> None:
    """Files from Windows editors read like any other."""
    text = (conf.root / "server/frontdoor.yaml").read_bytes()
    conf.write({"server/frontdoor.yaml": b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n")})
    assert conf.compose().fleet.servers["frontdoor"].slots == 2


def test_a_file_that_cannot_be_read_is_a_finding(conf: Conf) -> None:
    """The system's reason is in the message (a file that even root cannot read)."""
    (conf.root / "server/coder.yaml").unlink()
    (conf.root / "server/coder.yaml").symlink_to("/proc/self/mem")
    finding = conf.finding()
    assert (finding.code, conf.where(finding)) == ("config/unreadable", "server/coder.yaml:1:1")


@pytest.mark.parametrize("name", ["server/coder.yaml", "config.yaml"])
def test_a_file_without_an_end_is_a_finding(conf: Conf, name: str) -> None:
    """A FIFO that nobody writes to does not hang, a device does not fill the memory, nor does a huge file."""
    path = conf.root / name
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in said(conf, name)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "not a regular file" in said(conf, name)
    path.unlink()
    conf.write({name: "#" * (9 * 1024**2)})
    assert "larger than 8 MiB" in said(conf, name)


def said(conf: Conf, name: str) -> str:
    """The message of the `config/unreadable` finding about the file `name`."""
    found = [f for f in conf.findings() if f.code == "config/unreadable"]
    assert [conf.where(f) for f in found] == [f"{name}:1:1"]
    return found[0].message


def test_a_directory_named_like_a_file_is_pointed_out(conf: Conf, tmp_path: Path) -> None:
    """It is no group and shadows nothing, and that is not passed over in silence."""
    (tmp_path / "own" / "server" / "coder.yaml").mkdir(parents=True)
    composed = conf.compose(dirs=[tmp_path / "own", conf.root])
    (warning,) = composed.findings
    assert (warning.code, warning.severity) == ("config/unreadable", "warning")
    assert str(warning.location) == f"{tmp_path}/own/server/coder.yaml:1:1"
    assert "is a directory" in warning.message
    assert "coder" in composed.fleet.servers
    assert groups([tmp_path / "own"]) == {"server": ()}


@pytest.mark.parametrize("text", ["slots: [\n", "# @package servers.coder\nslots: [\n", None])
def test_a_broken_file_has_no_followers(conf: Conf, text: str | None) -> None:
    """An override of what the file would have brought is not also wrong; one of anything else still is."""
    if text is None:
        (conf.root / "server/coder.yaml").unlink()
    else:
        conf.write({"server/coder.yaml": text})
    found = conf.findings("servers.coder.slots=4", "~servers.coder.tier")
    assert [f.code for f in found] == ["config/unknown-option" if text is None else "config/yaml"]
    codes = {f.code for f in conf.findings("servers.frontdoor.slotz=4", "servers.coder.slots=4")}
    assert codes == {"config/unknown-key", "config/unknown-option" if text is None else "config/yaml"}


def test_a_broken_profile_has_no_followers(conf: Conf) -> None:
    """It would have brought the servers."""
    conf.write({"profile/dev.yaml": "# @package _global_\ndefaults: [\n"})
    assert [f.code for f in conf.findings("servers.coder.slots=4")] == ["config/yaml"]


def test_a_fleet_without_servers_says_so(conf: Conf) -> None:
    """An empty mapping is no value."""
    conf.write({"profile/dev.yaml": "# @package _global_\nservers: {}\n"})
    finding = next(f for f in conf.findings("servers.coder.slots=4") if f.code == "config/unknown-key")
    assert "there are no servers" in finding.notes


def test_a_cycle_of_defaults_is_shown_in_the_file_that_closes_it(conf: Conf, tmp_path: Path) -> None:
    """Named with every file of it, at the line that leads on, not at the primary config."""
    head = "# @package _global_\ndefaults:\n"
    own = {"profile/a.yaml": f"{head}  - dev\n  - b\n", "profile/b.yaml": f"{head}  - /profile: [a]\n"}
    conf.write(own)
    finding = conf.finding("profile=a")
    assert (finding.code, conf.where(finding)) == ("config/defaults", "profile/a.yaml:4:5")
    assert finding.message == "a defaults list leads back to itself: profile/a → profile/b → profile/a"
    conf.write({"profile/a.yaml": f"{head}  - a\n"})
    assert conf.finding("profile=a").message.endswith(": profile/a → profile/a")


def test_a_directory_that_is_none_is_a_finding(conf: Conf, tmp_path: Path) -> None:
    """Missing directories, files in their place, and directories without config.yaml."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("missing", "file"):
        finding = conf.finding(dirs=[tmp_path / name])
        assert (finding.code, finding.location and finding.location.file) == ("config/unreadable", str(tmp_path / name))
    assert "no config.yaml" in conf.finding(dirs=[tmp_path / "empty"]).message
    found = conf.findings(dirs=[tmp_path / "missing", conf.root])
    assert [f.code for f in found] == ["config/unreadable"]


def test_a_yml_file_is_pointed_out(conf: Conf) -> None:
    """Hydra reads .yaml only; a .yml is a warning, not silence."""
    conf.write({"server/mine.yml": "model: tiny\n"})
    (warning,) = conf.compose().findings
    assert (warning.severity, conf.where(warning)) == ("warning", "server/mine.yml:1:1")


def test_an_earlier_directory_shadows_and_adds(conf: Conf, tmp_path: Path) -> None:
    """The user's own file wins over the packaged one of the same name; other files are added."""
    own = Conf(tmp_path / "own")
    for path in list(own.root.rglob("*.yaml")):
        path.unlink()
    own.write({"hardware/laptop.yaml": "name: mine\nram_bytes: 1GiB\ncpu: {physical_cores: 1, logical_cores: 1}\n"})
    own.write({"server/mine.yaml": "# @package servers.coder\nmodel: tiny\nquantization: q8_0\ntier: warm\n"})
    composed = conf.compose("hardware=laptop", "+server=mine", dirs=[own.root, conf.root])
    assert composed.fleet.hardware.name == "mine"
    assert composed.fleet.servers["coder"].tier == "warm"
    assert str(composed.sources.find("hardware.name")) == f"{own.root}/hardware/laptop.yaml:1:7"
    assert groups([own.root, conf.root])["hardware"] == ("epyc", "laptop")


def test_groups_need_no_valid_files(conf: Conf, tmp_path: Path) -> None:
    """Completion lists options without reading them, and shrugs at a missing directory."""
    conf.write({"server/broken.yaml": "a: [", "server/gpu/big.yaml": "", ".git/x.yaml": "", "__pycache__/y.yaml": ""})
    found = groups([tmp_path / "missing", conf.root])
    assert found["server"] == ("broken", "coder", "embedder", "frontdoor")
    assert found["server/gpu"] == ("big",)
    assert not [group for group in found if group.startswith((".", "_"))]


def test_a_link_to_a_parent_directory_ends(conf: Conf) -> None:
    """Listing stops at a depth."""
    (conf.root / "server/loop").symlink_to(conf.root)
    assert "frontdoor" in conf.compose().fleet.servers
