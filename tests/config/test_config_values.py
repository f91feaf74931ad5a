"""Decoding: every wrong value found in one go, with its key, its place and its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.composing import server_from_fields
from launcher.config.decode import decode, stand_in
from launcher.config.schema import Number, Record, Shape, Table, describe, fields_of, inner, shape_of
from launcher.errors import ConfigError
from launcher.ir.config import FleetConfig, HardwareConfig, ModelConfig, ServerConfig
from tests.config.conftest import FILES, Conf


@pytest.mark.parametrize(
    ("override", "code", "fix"),
    [
        ("servers.frontdoor.slots=four", "config/type", None),
        ("servers.frontdoor.slots='4'", "config/type", "servers.frontdoor.slots=4"),
        ("servers.frontdoor.slots=true", "config/type", None),
        ("servers.frontdoor.slots=4.0", "config/type", None),
        ("servers.frontdoor.slots=0", "config/range", None),
        ("servers.frontdoor.slots=-3", "config/range", None),
        ("servers.frontdoor.slots=[4]", "config/type", None),
        ("servers.frontdoor.n_batch=null", "config/type", None),
        ("servers.frontdoor.n_batch=99999999999999999999", "config/range", None),
        ("servers.frontdoor.swa_full=1", "config/type", None),
        ("servers.frontdoor.swa_full='yes'", "config/type", None),
        ("servers.frontdoor.start_timeout_s=soon", "config/type", None),
        ("servers.frontdoor.start_timeout_s='90.5'", "config/type", "servers.frontdoor.start_timeout_s=90.5"),
        ("servers.frontdoor.start_timeout_s='1e999'", "config/type", None),
        ("servers.frontdoor.start_timeout_s=true", "config/type", None),
        ("servers.frontdoor.start_timeout_s=-1", "config/range", None),
        ("servers.frontdoor.start_timeout_s=nan", "config/range", None),
        ("servers.frontdoor.tokens_per_second_min=1e308", "config/range", None),
        ("servers.frontdoor.stop_grace_s=inf", "config/range", None),
        ("servers.frontdoor.cpus=4", "config/type", "servers.frontdoor.cpus='4'"),
        ("servers.frontdoor.description=true", "config/type", None),
        ("servers.frontdoor.roles=frontdoor", "config/type", "servers.frontdoor.roles=[frontdoor]"),
        ("servers.frontdoor.tensor_split=0.5", "config/type", "servers.frontdoor.tensor_split=[0.5]"),
        ("servers.frontdoor.tensor_split=[-1]", "config/range", None),
        ("servers.frontdoor.load_mode=mmpa", "config/choice", "servers.frontdoor.load_mode=mmap"),
        ("servers.frontdoor.load_mode=4", "config/choice", None),
        ("servers.frontdoor.flash_attention=true", "config/choice", "servers.frontdoor.flash_attention=on"),
        ("servers.frontdoor.flash_attention=false", "config/choice", "servers.frontdoor.flash_attention=off"),
        ("servers.frontdoor.pooling=men", "config/choice", "servers.frontdoor.pooling=mean"),
        ("servers.frontdoor.n_gpu_layers=al", "config/choice", "servers.frontdoor.n_gpu_layers=all"),
        ("servers.frontdoor.n_gpu_layers=-1", "config/range", None),
        ("servers.frontdoor.n_gpu_layers=1.5", "config/type", None),
        ("servers.frontdoor.env={A: 4}", "config/type", "servers.frontdoor.env.A='4'"),
        ("servers.frontdoor.waive=[4]", "config/type", "servers.frontdoor.waive.0='4'"),
        ("servers.frontdoor.model=???", "config/missing", None),
        ("~servers.frontdoor.model", "config/missing", None),
        ("servers.frontdoor.model=null", "config/type", None),
        ("servers.frontdoor=null", "config/type", None),
        ("hardware.ram_bytes=lots", "config/size", None),
        ("hardware.ram_bytes=-5", "config/size", None),
        ("hardware.ram_bytes=0", "config/range", None),
        ("hardware.ram_bytes=1.5", "config/type", None),
        ("hardware.ram_bytes=true", "config/type", None),
        ("hardware.ram_bytes=null", "config/type", None),
        ("hardware.memlock_bytes=99999999999TB", "config/range", None),
        ("hardware.cpu.nodes=[{id: 0}]", "config/missing", None),
        ("ports.frontdoor=70000", "config/range", None),
        ("ports.frontdoor=0", "config/range", None),
        ("+ports={8080: 1}", "config/type", None),
        ("servers.frontdoor.port=65536", "config/range", None),
        ("models.tiny.architecture.n_head=[4, x]", "config/type", None),
        ("models.tiny.architecture.swa_pattern=x", "config/type", None),
        ("orchestration={workers: [coder]}", "config/missing", None),
        ("+servers.frontdoor.request_defaults={1: 2}", "config/type", None),
        ("hardware.gpus.cuda0.target_max=1.5", "config/range", None),
    ],
)
def test_a_wrong_value_is_one_finding(conf: Conf, override: str, code: str, fix: str | None) -> None:
    """One code, at the override that wrote it (or the file that lacks it), with the override that was meant."""
    found = conf.findings(override)
    assert {f.code for f in found} == {code}
    for finding in found:
        assert finding.key.split(".")[0] == override.lstrip("+~").split(".")[0].split("=")[0]
        if not override.startswith("~"):
            assert conf.where(finding) == "<command line>:1:1"
    assert [f.override for f in found[0].fixes][:1] == ([fix] if fix else [])
    if fix:
        conf.compose(override, fix)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("servers.frontdoor.start_timeout_s=90", "start_timeout_s", 90.0),
        ("servers.frontdoor.n_gpu_layers=all", "n_gpu_layers", "all"),
        ("servers.frontdoor.n_gpu_layers=12", "n_gpu_layers", 12),
        ("servers.frontdoor.threads=null", "threads", None),
        ("servers.frontdoor.flash_attention=on", "flash_attention", "on"),
        ("servers.frontdoor.tensor_split=[1, 0.5]", "tensor_split", (1.0, 0.5)),
        (
            "+servers.frontdoor.request_defaults={temperature: 0.2, stop: [a]}",
            "request_defaults",
            {"temperature": 0.2, "stop": ["a"]},
        ),
        ("servers.frontdoor.waive=[{cpu/x: why}, plain]", "waive", ({"cpu/x": "why"}, "plain")),
    ],
)
def test_right_values_are_taken(conf: Conf, override: str, key: str, value: Any) -> None:
    """Integers for numbers, null where optional, unions by the kind of value, free mappings as they are."""
    assert getattr(conf.compose(override).fleet.servers["frontdoor"], key) == value


def test_sizes_take_units(conf: Conf) -> None:
    """Bytes, decimal and binary units."""
    conf.write({"hardware/epyc.yaml": FILES["hardware/epyc.yaml"] + "ram_reserve_bytes: 12\nmemlock_bytes: 1.5 GiB\n"})
    fleet = conf.compose().fleet
    assert fleet.hardware.ram_bytes == 500 * 1024**3
    assert fleet.hardware.ram_reserve_bytes == 12
    assert fleet.hardware.memlock_bytes == 3 * 512 * 1024**2
    assert fleet.models["tiny"].files["q4_k_m"].bytes == 18 * 10**9


def test_unknown_keys_of_files_are_all_located(conf: Conf) -> None:
    """At every depth, at once, with the nearest key; what a file says is mended in the file, not by an override."""
    conf.write(
        {"server/coder.yaml": FILES["server/coder.yaml"] + "slotz: 3\ndraft: {modle: tiny}\n5: x\nnothing_like: null\n"}
    )
    found = {f.key: f for f in conf.findings()}
    assert set(found) == {
        "servers.coder.slotz",
        "servers.coder.draft.modle",
        "servers.coder.5",
        "servers.coder.nothing_like",
    }
    assert conf.where(found["servers.coder.slotz"]) == "server/coder.yaml:6:8"
    file = f"{conf.root}/server/coder.yaml"
    assert f"in {file}: write slots instead of slotz" in found["servers.coder.slotz"].notes
    assert f"in {file}: remove nothing_like" in found["servers.coder.nothing_like"].notes
    assert [f.fixes for f in found.values() if f.code == "config/unknown-key"] == [()] * 4
    assert conf.where(found["servers.coder.draft.modle"]) == "server/coder.yaml:7:16"


def test_an_unknown_key_of_a_typed_mapping_is_left_out_by_its_fix(conf: Conf) -> None:
    """What the command line wrote the command line can take back."""
    typed = "+servers.extra={model: tiny, quantization: q4_k_m, tier: hot, port: 9000, slotz: 4}"
    finding = conf.finding(typed)
    assert finding.notes[0] == "did you mean slots?"
    assert [(f.override, f.effect) for f in finding.fixes] == [("~servers.extra.slotz", "leaves it out")]
    conf.works(finding, typed)


@pytest.mark.parametrize(
    ("override", "effect"),
    [
        ("profile=dve", "the nearest option"),
        ("profil=dev", "the nearest group"),
        ("servers.coder.slotz=4", "the nearest key"),
        ("servers.coder.tier=hott", "the nearest name"),
        ("servers.coder.cache_type_k=q8", "the nearest choice"),
        ("include_warm=[codr]", "the nearest name"),
    ],
)
def test_effects_are_statements(conf: Conf, override: str, effect: str) -> None:
    """They are printed behind the override of their fix, where a question reads badly."""
    assert [fix.effect for fix in conf.finding(override).fixes] == [effect]


def test_an_option_like_no_other_gets_the_list(conf: Conf) -> None:
    """Every option is shown; none is proposed, because none is near."""
    finding = conf.finding("profile=nope")
    assert (finding.notes, finding.fixes) == (("in profile/: both, dev",), ())


def test_an_unquoted_on_is_explained(conf: Conf) -> None:
    """YAML reads a bare `on` as true."""
    conf.write({"server/coder.yaml": FILES["server/coder.yaml"] + "flash_attention: on\n"})
    finding = conf.finding()
    assert "put it in quotes" in " ".join(finding.notes)
    assert conf.works(finding).fleet.servers["coder"].flash_attention == "on"


def test_interpolations_are_resolved_only_where_they_are(conf: Conf) -> None:
    """They may name any other key; those that fail are findings at their place, the others still count."""
    conf.write(
        {"server/coder.yaml": FILES["server/coder.yaml"] + "description: on ${hardware.name}\nthreads: ${.slots}\n"}
    )
    composed = conf.compose("routing.timeouts_s={coder: '${hardware.cpu.physical_cores}'}")
    assert composed.fleet.servers["coder"].description == "on epyc"
    assert composed.fleet.servers["coder"].threads == 2
    assert composed.fleet.routing.timeouts_s == {"coder": 96}
    conf.write(
        {
            "server/coder.yaml": FILES["server/coder.yaml"]
            + "description: ${hardware.nme}\ncpus: '${'\nthreads: ${nope:1}\n"
        }
    )
    found = conf.findings("servers.frontdoor.slots=x", "ports.coder='${ports.coder}'")
    assert sorted((f.code, f.key) for f in found) == [
        ("config/interpolation", "ports.coder"),
        ("config/interpolation", "servers.coder.cpus"),
        ("config/interpolation", "servers.coder.description"),
        ("config/interpolation", "servers.coder.threads"),
        ("config/type", "servers.frontdoor.slots"),
    ]
    assert {conf.where(f) for f in found if f.key == "servers.coder.cpus"} == {"server/coder.yaml:7:7"}


def test_an_interpolation_below_an_empty_name_is_found_once(conf: Conf) -> None:
    """Its dotted key is that of another value, which is not what fails: composing ends."""
    conf.write({"config.yaml": FILES["config.yaml"] + '"":\n  profile: ${nothing}\n'})
    assert [(f.code, f.key) for f in conf.findings()][:1] == [("config/interpolation", "profile")]


def walk(shape: Any, seen: dict[type, Any]) -> dict[type, Any]:
    """Every struct under a shape."""
    if isinstance(shape, Record) and shape.struct not in seen:
        seen[shape.struct] = fields_of(shape.struct)
        for field in seen[shape.struct].values():
            walk(field.shape, seen)
    for name in ("item", "value"):
        if hasattr(shape, name):
            walk(getattr(shape, name), seen)
    for option in getattr(shape, "options", ()):
        if not isinstance(option, str):
            walk(option, seen)
    return seen


def test_every_config_type_has_a_shape_words_and_a_stand_in() -> None:
    """All annotations of the config types are understood."""
    structs = walk(shape_of(FleetConfig), {})
    assert {HardwareConfig, ModelConfig, ServerConfig} <= set(structs)
    for struct, fields in structs.items():
        assert isinstance(stand_in(Record(struct)), struct)
        assert all(describe(field.shape) for field in fields.values())
    with pytest.raises(TypeError):
        shape_of(set)


def numbers_in(shape: Any) -> list[Number]:
    """The numbers that a value of `shape` may be or hold, records aside."""
    inner = (getattr(shape, "item", None), getattr(shape, "value", None), *getattr(shape, "options", ()))
    return [shape] if isinstance(shape, Number) else [n for one in inner if one is not None for n in numbers_in(one)]


def test_defaults_are_within_their_ranges() -> None:
    """What the types give by default decodes again without a finding; every duration has an end."""
    for struct, fields in walk(shape_of(FleetConfig), {}).items():
        for name, field in fields.items():
            for number in numbers_in(field.shape):
                if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                    assert number.has(field.default), (struct, name)
                assert number.high is not None or not name.endswith("_s"), (struct, name)


def test_the_decoder_agrees_with_msgspec(conf: Conf) -> None:
    """A decoded fleet goes through msgspec's own validation and back unchanged."""
    fleet = conf.compose("profile=both").fleet
    assert msgspec.json.decode(msgspec.json.encode(fleet), type=FleetConfig) == fleet
    assert msgspec.convert(msgspec.to_builtins(fleet), FleetConfig) == fleet


@pytest.mark.parametrize(("key", "known"), [("servers", True), ("serverz", False), ("waive", True)])
def test_inner_knows_declared_keys(key: str, known: bool) -> None:
    """A record knows its fields only; a value has nothing inside."""
    assert (inner(shape_of(FleetConfig), key) is not None) is known
    assert inner(shape_of(int), "x") is None


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("???")),
    lambda v: st.one_of(
        st.lists(v, max_size=3),
        st.dictionaries(st.sampled_from([*fields_of(ServerConfig), "x", "y", 5, True]), v, max_size=4),
    ),
    max_leaves=12,
)
SOMEWHERE = st.sampled_from(
    [
        "servers.x",
        "servers",
        "hardware",
        "models.m.architecture",
        "models.m.files",
        "routing",
        "orchestration",
        "ports",
        "tiers.t",
        "waive",
    ]
)


@given(st.lists(st.tuples(SOMEWHERE, JUNK), max_size=4))
def test_junk_values_become_findings(pieces: list[tuple[str, Any]]) -> None:
    """Decoding and cross-checking any tree gives a fleet and findings, and raises nothing."""
    from launcher.config.located import LocatedTree
    from launcher.config.references import CHECKS
    from launcher.errors import Location

    located = LocatedTree()
    for package, values in pieces:
        parent, _, name = package.rpartition(".")
        located.embed({name: values}, parent, {"": Location(file="f", line=1)})
    fleet, findings = decode(FleetConfig, located.tree)
    findings += [finding for check in CHECKS for finding in check(fleet)]
    assert all(f.notes or f.fixes for f in findings)


def test_the_error_is_one_error_with_all_findings(conf: Conf) -> None:
    """ConfigError carries them in order and prints their messages."""
    with pytest.raises(ConfigError) as caught:
        conf.compose("servers.frontdoor.slots=x", "servers.coder.slots=y")
    assert [f.key for f in caught.value.findings] == ["servers.frontdoor.slots", "servers.coder.slots"]
    assert "error[config/type]" in str(caught.value)


def test_server_fields_are_decoded_alone() -> None:
    """`launch inspect`'s fields: a server with no name, or findings at the position of each."""
    server = server_from_fields(["n_ctx=16384", "slots=2"])
    assert (server.n_ctx, server.slots, server.n_ubatch) == (16384, 2, 512)
    with pytest.raises(ConfigError) as caught:
        server_from_fields(["slots=x", "n_ctx=4", "slotz=1"])
    assert {(f.code, str(f.location)) for f in caught.value.findings} == {
        ("config/type", "<command line>:1:1"),
        ("config/unknown-key", "<command line>:3:1"),
    }


def durations(shape: Shape, key: str) -> Iterator[str]:
    """The dotted key of every `*_s` number of the config types, of the servers those of `frontdoor`."""
    if isinstance(shape, Record):
        for name, field in fields_of(shape.struct).items():
            if name.endswith("_s") and not isinstance(field.shape, Table):
                yield f"{key}{name}"
            yield from durations(field.shape, f"{key}{name}.")
    elif isinstance(shape, Table) and key == "servers.":
        yield from durations(shape.value, "servers.frontdoor.")


@pytest.mark.parametrize("key", [*durations(shape_of(FleetConfig), "")])
def test_every_duration_has_an_end(conf: Conf, key: str) -> None:
    """1e308 seconds would overflow whatever counts in smaller units; what is infinite must be finite."""
    finding = conf.finding(f"++{key}=1e308")
    shape: Any = shape_of(FleetConfig)
    for part in key.split("."):
        shape = inner(shape, part)
    limits = numbers_in(shape)[0].limits
    assert (finding.code, finding.key) == ("config/range", key)
    assert finding.message == f"{key} is 1e+308, and must be {limits}"
    assert conf.finding(f"++{key}=inf").message == f"{key} is inf, and must be a finite number, {limits}"
    assert limits.endswith(" to 10000000")
    conf.compose(f"++{key}=1e7")


def test_a_number_of_thousands_of_digits_is_a_finding(conf: Conf) -> None:
    """Python refuses to print such an integer, which is not the user's problem."""
    digits = "0x" + "f" * 20_000
    conf.write({"server/coder.yaml": f"model: {digits}\nquantization: q4_k_m\ntier: hot\nslots: {digits}\n"})
    found = {f.key: f for f in conf.findings()}
    assert "is a number of 80000 bits, and must be a finite number" in found["servers.coder.slots"].message
    assert "80000 bits" in found["servers.coder.model"].message
