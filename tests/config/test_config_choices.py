"""Group choices and defaults lists: Hydra's algorithm, every mistake at once, the same result as plain Hydra."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from launcher.config.index import CATALOGUE_GROUPS, ENTRY_GROUPS, index_of
from launcher.config.repository import FragmentRepository
from launcher.errors import LaunchError
from tests.config.conftest import FILES, Conf

SHIPPED = Path(__file__).parents[2] / "conf"
Plain = Callable[..., Any]


@pytest.fixture
def by_hydra(tmp_path: Path) -> Plain:
    """A function that composes a directory with plain Hydra, the catalogue before everything else."""

    def composed(root: Path, *overrides: str) -> Any:
        whole = tmp_path / "whole"
        whole.mkdir(exist_ok=True)
        options = {g: sorted(p.stem for p in (root / g).glob("*.yaml")) for g in CATALOGUE_GROUPS}
        lines = [f"  - {group}: [{', '.join(names)}]" for group, names in options.items()]
        text = "\n".join(["defaults:", *lines, "  - config", "hydra:", f"  searchpath: [file://{root}]"])
        (whole / "whole.yaml").write_text(text + "\n")
        with initialize_config_dir(str(whole), version_base="1.3"):
            return OmegaConf.to_container(hydra_compose("whole", list(overrides)), resolve=True)

    return composed


@pytest.fixture
def headed(conf: Conf) -> Conf:
    """The small fleet with a header in every entry file, as plain Hydra needs them."""
    for path, text in FILES.items():
        group, _, name = path.partition("/")
        if group in ENTRY_GROUPS and not text.startswith("#"):
            conf.write({path: f"# @package {ENTRY_GROUPS[group]}.{name.removesuffix('.yaml')}\n{text}"})
    return conf


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("hardware=laptop", "profile=both"),
        ("+server=embedder", "servers.embedder.slots=7"),
        ("+server=[embedder]", "~servers.coder"),
        ("+server@servers.second=frontdoor", "+ports.second=9001", "servers.second.roles=[other]"),
        ("+server@servers.second=frontdoor", "+server@servers.third=frontdoor", "+ports={second: 1, third: 2}"),
        (
            "++servers.frontdoor.env.A=b",
            "+servers.coder.env={A: c}",
            "+servers.coder.description='on ${hardware.name}'",
        ),
        ("profile=nested",),
        ("profile=nested", "routing=b"),
        ("profile=nested", "~routing"),
        ("profile=nested", "+routing@routing=b"),
        ("profile=amending",),
        ("profile=following", "+routing=a"),
        ("profile=following", "+routing=b", "hardware=laptop"),
    ],
)
def test_a_small_fleet_composes_as_under_plain_hydra(headed: Conf, by_hydra: Plain, overrides: tuple[str, ...]) -> None:
    """Every ordinary use of defaults lists gives the tree that hydra.compose gives."""
    headed.write(
        {
            "routing/a.yaml": "default: frontdoor\ntimeouts_s: {frontdoor: 60}\n",
            "routing/b.yaml": "defaults:\n  - a\n  - _self_\ndefault: coder\n",
            "profile/nested.yaml": "# @package _global_\ndefaults:\n  - dev\n"
            "  - /routing: a\n  - optional /deploy: none\n"
            "  - /orchestration: null\n  - /tier@tiers.slow: warm\n  - override /hardware: laptop\n  - _self_\n"
            "profile: {name: nested}\n",
            "profile/following.yaml": "# @package _global_\ndefaults:\n  - dev\n"
            "  - /deploy: for_${hardware}\n  - _self_\n"
            "profile: {name: following}\n",
            "deploy/for_epyc.yaml": "unit_prefix: epyc\n",
            "deploy/for_laptop.yaml": "unit_prefix: laptop\n",
            "profile/amending.yaml": "# @package _global_\ndefaults:\n  - _self_\n  - dev\nprofile: {name: amending}\n"
            "tiers: {warm: {idle_timeout_s: 9}}\nmodels: {tiny: {files: {q8_0: {path: elsewhere.gguf}}}}\n",
        }
    )
    expected, refused = None, False
    try:
        expected = by_hydra(headed.root, *overrides)
    except Exception:  # noqa: BLE001 - whatever Hydra raises, it refuses
        refused = True
    if refused:
        headed.findings(*overrides)
    else:
        assert headed.compose(*overrides).tree == expected


@pytest.mark.parametrize(
    "overrides",
    [
        ("hardware=dev",),
        ("hardware=epyc", "profile=hot_only", "servers.frontdoor.slots=3", "~servers.worker_vision"),
        ("hardware=epyc", "profile=full"),
        ("hardware=sovereign", "profile=three_tier", "engine=embedded"),
        ("hardware=epyc", "profile=epyc_dev", "runtime.front.port=9000"),
    ],
)
def test_the_shipped_config_composes_as_under_plain_hydra(by_hydra: Plain, overrides: tuple[str, ...]) -> None:
    """Every packaged profile: the same tree, and a location for each of its values."""
    from launcher.config import flatten
    from launcher.config.composing import compose

    composed = compose(overrides, config_dirs=[SHIPPED])
    plain = by_hydra(SHIPPED, *overrides)
    for name, server in plain["servers"].items():
        if server.get("devices") == "auto":  # a word of ours, and a list once the cards are known
            ours = composed.tree["servers"][name]
            assert isinstance(ours["devices"], list)
            server |= {key: ours[key] for key in ("devices", "n_gpu_layers") if key in ours}
    assert composed.tree == plain
    for key, _ in flatten(composed.tree):
        assert key in composed.sources.locations, key


def test_python_warnings_never_reach_users(conf: Conf) -> None:
    """A primary config without _self_ makes Hydra warn; here nobody hears of it."""
    conf.write({"config.yaml": FILES["config.yaml"].replace("  - _self_\n", "") + "include_warm: []\n"})
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        conf.compose()
    assert heard == []


@pytest.mark.parametrize(
    ("override", "code", "fix"),
    [
        ("hardware=epic", "config/unknown-option", "hardware=epyc"),
        ("hardware=zzz", "config/unknown-option", None),
        ("hardwre=epyc", "config/unknown-group", "hardware=epyc"),
        ("+servr=embedder", "config/unknown-group", "+server=embedder"),
        ("+server=[embedder,embeder]", "config/unknown-option", "+server=[embedder,embedder]"),
        ("+server@servers.x=embeder", "config/unknown-option", "+server@servers.x=embedder"),
        ("hardware=null", "config/override", None),
        ("hardware=3", "config/override", None),
        ("++hardware=epyc", "config/override", "+hardware=epyc"),
        ("routing=a", "config/override", "+routing=a"),
        ("~routing", "config/override", None),
        ("~service=x", "config/override", None),
        ("+servers.frontdoor.slotz=4", "config/unknown-key", "servers.frontdoor.slots=4"),
        ("++foo=4", "config/unknown-key", None),
        ("~deploy=x", "config/unknown-key", None),
        ("model=tiny", "config/override", "servers.NAME.model=tiny"),
        ("hardware=epyc,laptop", "config/override", "hardware=epyc"),
    ],
)
def test_a_wrong_choice_is_one_finding(conf: Conf, override: str, code: str, fix: str | None) -> None:
    """Its code, its position, what there is to choose from, and the choice that was meant."""
    conf.write({"routing/a.yaml": "default: coder\n", "service/x.yaml": "command: [x]\nport: 1\n"})
    finding = conf.finding("servers.frontdoor.slots=1", override)
    assert finding.code == code
    assert conf.where(finding) == "<command line>:2:1"
    assert [f.override for f in finding.fixes][:1] == ([fix] if fix else [])
    if code == "config/unknown-option":
        assert any(note.startswith("in ") for note in finding.notes)


def test_mistakes_of_all_kinds_come_together(conf: Conf) -> None:
    """Grammar, group, option, key, type and reference: one run shows them all, and nothing that follows from them."""
    found = conf.findings("a=[", "hardware=epic", "prfile=dev", "servers.frontdor.slots=4", "servers.coder.slots=x")
    assert [(f.code, f.location and f.location.line) for f in found] == [
        ("config/override", 1),
        ("config/unknown-option", 2),
        ("config/unknown-group", 3),
        ("config/unknown-key", 4),
        ("config/type", 5),
    ]


@pytest.mark.parametrize(
    ("defaults", "code", "where", "said"),
    [
        ("  - /servr: [coder]\n", "config/unknown-group", 3, "servr/"),
        ("  - /server: [frontdoor, codr]\n", "config/unknown-option", 3, "'codr'"),
        ("  - /server/codr\n", "config/unknown-option", 3, "'codr'"),
        ("  - elsewhere\n", "config/unknown-option", 3, "'elsewhere'"),
        ("  - /server: [1]\n", "config/defaults", 3, "must be names"),
        ("  - {a: b, c: d}\n", "config/defaults", 3, "one `group: option`"),
        ("  - /server: {a: b}\n", "config/defaults", 3, "must be a name"),
        ("  - 3\n", "config/defaults", 3, "one name"),
        ("  - first /server: coder\n", "config/defaults", 3, "first /server"),
        ("  - 5: coder\n", "config/defaults", 3, "not the name of a group"),
        ("  - override /hardware: laptop\n  - /server: [coder]\n", "config/defaults", 4, "must be at the end"),
        ("  - override /nowhere: x\n", "config/defaults", 2, "Could not override"),
        ("  - _self_\n  - _self_\n", "config/defaults", 2, "Duplicate _self_"),
        ("  - bad\n", "config/defaults", 3, "leads back to itself"),
    ],
)
def test_a_wrong_defaults_list_is_located(conf: Conf, defaults: str, code: str, where: int, said: str) -> None:
    """Each mistake is a finding at the line that has it (or at the list, where Hydra does not say)."""
    text = f"# @package _global_\ndefaults:\n{defaults}profile: {{name: bad}}\n"
    finding = conf.write({"profile/bad.yaml": text}).finding("profile=bad")
    assert finding.code == code
    assert said in " ".join([finding.message, *finding.notes])
    assert conf.where(finding).rpartition(":")[0] in (f"profile/bad.yaml:{where}", "config.yaml:1")


def test_a_defaults_list_must_be_a_list(conf: Conf) -> None:
    """`defaults:` with a mapping under it is located."""
    finding = conf.write({"profile/bad.yaml": "# @package _global_\ndefaults:\n  /server: coder\n"}).findings(
        "profile=bad"
    )[0]
    assert (finding.code, conf.where(finding)) == ("config/defaults", "profile/bad.yaml:2:1")


def test_a_choice_left_open_must_be_made(conf: Conf) -> None:
    """`hardware: ???` asks for a choice, and the fixes make it."""
    conf.write({"config.yaml": FILES["config.yaml"].replace("hardware: epyc", "hardware: ???")})
    finding = conf.finding()
    assert (finding.code, finding.key) == ("config/missing", "hardware")
    assert conf.works(finding).fleet.hardware.name == "epyc"


def test_a_group_nobody_chose_is_added_by_its_fix(conf: Conf) -> None:
    """A group that no defaults list mentions needs a `+`."""
    conf.write({"config.yaml": FILES["config.yaml"].replace("  - hardware: epyc\n", "")})
    finding = conf.finding()
    assert [f.override for f in finding.fixes] == ["+hardware=epyc", "+hardware=laptop"]
    assert conf.works(finding)


def test_probes_are_called_only_when_chosen(conf: Conf) -> None:
    """A virtual option is offered, called once if chosen, located at this machine, and can be amended."""
    calls = []

    def probe() -> dict[str, Any]:
        calls.append(1)
        return {"name": "auto", "ram_bytes": 10, "cpu": {"physical_cores": 1, "logical_cores": 2}}

    virtual = {"hardware/auto": probe}
    conf.compose(virtual=virtual)
    assert calls == []
    composed = conf.compose("hardware=auto", "hardware.ram_reserve_bytes=1", "include_warm=[embedder]", virtual=virtual)
    assert calls == [1]
    assert composed.fleet.hardware.name == "auto"
    assert str(composed.sources.find("hardware.cpu.logical_cores")) == "this machine"
    assert str(composed.sources.find("hardware.ram_reserve_bytes")) == "<command line>:2:1"
    assert "in hardware/: auto, epyc, laptop" in conf.finding("hardware=atuo", virtual=virtual).notes


def test_a_probes_own_error_passes_through(conf: Conf) -> None:
    """A host that cannot be probed is the host room's finding."""

    def probe() -> dict[str, Any]:
        raise LaunchError([])

    with pytest.raises(LaunchError):
        conf.compose("hardware=auto", virtual={"hardware/auto": probe})


def test_the_repository_answers_what_hydra_may_ask(conf: Conf) -> None:
    """The whole interface is there; no schema source exists."""
    repository = FragmentRepository(index_of([conf.root]), {})
    assert repository.get_group_options("hardware") == ["epyc", "laptop"]
    assert repository.get_sources() == []
    assert repository.load_config("hardware/none") is None
    with pytest.raises(NotImplementedError):
        repository.get_schema_source()


def test_include_warm_adds_what_the_profile_lacks(conf: Conf) -> None:
    """From the command line or from a file; the server's file is merged as if +server listed it."""
    composed = conf.compose("include_warm=[embedder]", "servers.embedder.slots=5")
    assert composed.fleet.servers["embedder"].slots == 5
    assert composed.fleet.include_warm == ("embedder",)
    conf.write({"config.yaml": FILES["config.yaml"] + "include_warm: [embedder]\n"})
    assert "embedder" in conf.compose().fleet.servers


def test_include_warm_promotes_a_warm_server_of_the_profile(conf: Conf) -> None:
    """A WARM server that the profile has is not added again; the plan starts it with the HOT ones."""
    composed = conf.compose("profile=both", "include_warm=[embedder]", "servers.embedder.slots=3")
    assert composed.fleet.servers["embedder"].slots == 3


def test_include_warm_of_a_hot_server_would_start_it_twice(conf: Conf) -> None:
    """The accident of the seed document: a second start on the same port."""
    finding = conf.finding("include_warm=[embedder,coder]")
    assert (finding.code, conf.where(finding)) == ("config/duplicate-server", "<command line>:1:1")
    assert [f.override for f in finding.fixes] == ["include_warm=[embedder]"]
    assert conf.works(finding)


def test_include_warm_by_another_files_name_is_the_same_server(conf: Conf) -> None:
    """A file that says it is servers.coder is servers.coder; one that says another name is named by it."""
    conf.write({"server/coder_big.yaml": "# @package servers.coder\nmodel: tiny\n"})
    assert conf.finding("include_warm=[coder_big]").code == "config/duplicate-server"
    conf.write({"server/other.yaml": "# @package servers.embedder\n" + FILES["server/embedder.yaml"]})
    finding = conf.finding("include_warm=[other]")
    assert (finding.code, finding.key) == ("config/dangling", "include_warm.0")


def test_include_warm_names_are_checked(conf: Conf) -> None:
    """An unknown name has the nearest one as its fix; a name twice is a duplicate; a bare name is a type error."""
    finding = conf.finding("include_warm=[embeder]")
    assert (finding.code, finding.fixes[0].override) == ("config/unknown-option", "include_warm=[embedder]")
    assert conf.works(finding)
    assert conf.finding("include_warm=[embedder,embedder]").code == "config/duplicate-server"
    finding = conf.finding("include_warm=embedder")
    assert (finding.code, finding.fixes[0].override) == ("config/type", "include_warm=[embedder]")


def test_a_server_listed_twice_is_an_error(conf: Conf) -> None:
    """+server of one that the profile lists, and a profile that lists one twice."""
    finding = conf.finding("+server=coder")
    assert (finding.code, finding.key) == ("config/duplicate-server", "servers.coder")
    conf.write(
        {"profile/dev.yaml": FILES["profile/dev.yaml"].replace("[frontdoor, coder]", "[frontdoor, coder, coder]")}
    )
    assert conf.where(conf.finding()) == "profile/dev.yaml:3:5"


def test_a_profile_as_people_begin_it(conf: Conf) -> None:
    """A group without its slash is pointed at; a profile that does not say its name is called after its file."""
    conf.write({"profile/mine.yaml": "defaults: [server: [frontdoor]]\n"})
    found = conf.finding("profile=mine")
    assert found.code == "config/unknown-group"
    assert "did you mean /server?" in found.notes[0]
    for header in ("", "# @package _global_\n"):
        conf.write({"profile/mine.yaml": f"{header}defaults: [/server: [frontdoor], _self_]\n"})
        assert conf.compose("profile=mine").fleet.profile.name == "mine"
