"""Names that must lead somewhere, and names that must be one's own."""

from __future__ import annotations

import pytest

from launcher.config import flatten, locate
from launcher.config.composing import compose
from launcher.config.references import CHECKS, cycles
from launcher.errors import Finding, Location
from launcher.ir.config import SourceMap
from tests.config.conftest import FILES, Conf

SERVICE = "services.s={command: [x], port: 9999"


@pytest.mark.parametrize(
    ("overrides", "code", "key", "fix"),
    [
        (["servers.coder.model=tinny"], "config/dangling", "servers.coder.model", "servers.coder.model=tiny"),
        (["servers.coder.model=zzz"], "config/dangling", "servers.coder.model", None),
        (
            ["servers.coder.quantization=q4"],
            "config/dangling",
            "servers.coder.quantization",
            "servers.coder.quantization=q4_k_m",
        ),
        (
            ["~models.tiny.files.q8_0", "servers.coder.quantization=q8_0"],
            "config/dangling",
            "servers.coder.quantization",
            "servers.coder.quantization=q4_k_m",
        ),
        (
            ["servers.coder.draft={model: draf, quantization: q8_0}"],
            "config/dangling",
            "servers.coder.draft.model",
            "servers.coder.draft.model=draft",
        ),
        (["+models.tiny.files.q9={path: x}"], "config/dangling", "models.tiny.files.q9", None),
        (["servers.coder.tier=hott"], "config/dangling", "servers.coder.tier", "servers.coder.tier=hot"),
        ([f"+{SERVICE}, tier: warmish}}"], "config/dangling", "services.s.tier", "services.s.tier=warm"),
        (["servers.coder.engine=defalt"], "config/dangling", "servers.coder.engine", "servers.coder.engine=default"),
        (["servers.coder.engine=''"], "config/dangling", "servers.coder.engine", None),
        (["servers.coder.tier=''"], "config/dangling", "servers.coder.tier", None),
        (["servers.coder.model=''"], "config/dangling", "servers.coder.model", None),
        (["servers.coder.quantization=''"], "config/dangling", "servers.coder.quantization", None),
        (["servers.coder.after=['']"], "config/dangling", "servers.coder.after.0", "servers.coder.after=[]"),
        (["servers.coder.cache_type_k=''"], "config/choice", "servers.coder.cache_type_k", None),
        (["routing.default=''"], "config/dangling", "routing.default", None),
        (["servers.coder.host=''"], "config/address", "servers.coder.host", "servers.coder.host=127.0.0.1"),
        (["runtime.front.host=''"], "config/address", "runtime.front.host", "runtime.front.host=127.0.0.1"),
        (
            ["servers.coder.devices=[cuda1]"],
            "config/dangling",
            "servers.coder.devices.0",
            "servers.coder.devices.0=cuda0",
        ),
        (
            ["hardware=laptop", "servers.coder.devices=[cuda0]"],
            "config/dangling",
            "servers.coder.devices.0",
            "servers.coder.devices=[]",
        ),
        (
            ["servers.coder.after=[frontdor]"],
            "config/dangling",
            "servers.coder.after.0",
            "servers.coder.after.0=frontdoor",
        ),
        (
            ["servers.coder.after=[s]", f"+{SERVICE}}}"],
            "config/dangling",
            "servers.coder.after.0",
            "servers.coder.after=[]",
        ),
        (["servers.coder.after=[coder]"], "config/cycle", "servers.coder.after", "servers.coder.after=[]"),
        (
            ["servers.coder.after=[frontdoor]", "servers.frontdoor.after=[coder]"],
            "config/cycle",
            "servers.frontdoor.after",
            "servers.frontdoor.after=[]",
        ),
        (["routing.default=codr"], "config/dangling", "routing.default", "routing.default=coder"),
        (
            ["routing.pools={p: {servers: [coder, zzz]}}"],
            "config/dangling",
            "routing.pools.p.servers.1",
            "routing.pools.p.servers=[coder]",
        ),
        (
            ["routing.fallback={coder: [zzz]}"],
            "config/dangling",
            "routing.fallback.coder.0",
            "routing.fallback.coder=[]",
        ),
        (
            ["routing.escalation.chain={coder: zzz}"],
            "config/dangling",
            "routing.escalation.chain.coder",
            "~routing.escalation.chain.coder",
        ),
        (
            ["routing.escalation.chain={coder: frontdoor, frontdoor: coder}"],
            "config/cycle",
            "routing.escalation.chain.coder",
            "~routing.escalation.chain.coder",
        ),
        (["orchestration={router: zzz}"], "config/dangling", "orchestration.router", None),
        (
            ["orchestration={router: coder, rules: [{words: [x], domain: d, model: frontdor}]}"],
            "config/dangling",
            "orchestration.rules.0.model",
            "orchestration.rules.0.model=frontdoor",
        ),
        (
            ["orchestration={router: coder, workers: [frontdor]}"],
            "config/dangling",
            "orchestration.workers.0",
            "orchestration.workers.0=frontdoor",
        ),
        (
            ["orchestration={router: coder, validation: {validator: frontdor}}"],
            "config/dangling",
            "orchestration.validation.validator",
            "orchestration.validation.validator=frontdoor",
        ),
        (
            ["orchestration={router: coder, warm_pool: {predict: {d: frontdor}}}"],
            "config/dangling",
            "orchestration.warm_pool.predict.d",
            "orchestration.warm_pool.predict.d=frontdoor",
        ),
        (
            ["orchestration={router: coder, warm_pool: {patterns: [[coder, zzz]]}}"],
            "config/dangling",
            "orchestration.warm_pool.patterns.0.1",
            None,
        ),
        (
            ["orchestration={router: coder, oom_ladder: [{server: zzz}]}"],
            "config/dangling",
            "orchestration.oom_ladder.0.server",
            None,
        ),
        (
            ["orchestration={router: coder, oom_ladder: [{quantization: q4}]}"],
            "config/dangling",
            "orchestration.oom_ladder.0.quantization",
            "orchestration.oom_ladder.0.quantization=q4_k_m",
        ),
        (
            ["hooks={h: {http: frontdor/embedding}}"],
            "config/dangling",
            "hooks.h.http",
            "hooks.h.http=frontdoor/embedding",
        ),
        (["hooks={h: {http: zzz/embedding}}"], "config/dangling", "hooks.h.http", "hooks.h.enabled=false"),
        (["hooks={h: {http: frontdoor}}"], "config/type", "hooks.h.http", None),
        (["hooks={h: {}}"], "config/conflict", "hooks.h", None),
        (["hooks={h: {python: a, command: [b]}}"], "config/conflict", "hooks.h", None),
        ([f"+{SERVICE}, builtin: front}}"], "config/conflict", "services.s", None),
        (["+services.s={port: 1}"], "config/conflict", "services.s", None),
        (
            ["servers.coder.n_ctx=1", "servers.coder.n_ctx_per_slot=2"],
            "config/conflict",
            "servers.coder.n_ctx_per_slot",
            "servers.coder.n_ctx=null",
        ),
        (["~ports.coder"], "config/missing", "servers.coder.port", "+ports.coder=8091"),
        (["~ports"], "config/missing", "servers.frontdoor.port", "+ports.frontdoor=8001"),
        (["+services.s={command: [x]}"], "config/missing", "services.s.port", "+ports.s=8091"),
        (
            ["servers.coder.aliases=[frontdoor]"],
            "config/duplicate-name",
            "servers.coder.aliases.0",
            "servers.coder.aliases=[]",
        ),
        (
            ["servers.coder.aliases=[x, y]", "servers.frontdoor.aliases=[x]"],
            "config/duplicate-name",
            "servers.coder.aliases.0",
            "servers.coder.aliases=[y]",
        ),
        (
            ["servers.coder.aliases=[x]", "servers.frontdoor.roles=[x]"],
            "config/duplicate-name",
            "servers.coder.aliases.0",
            "servers.coder.aliases=[]",
        ),
        (
            ["servers.coder.roles=[frontdoor]", "servers.frontdoor.roles=[other]"],
            "config/duplicate-name",
            "servers.coder.roles.0",
            None,
        ),
        (["+services.coder={command: [x]}"], "config/duplicate-name", "services.coder", None),
        (
            ["'+servers={_a: {model: tiny, quantization: q8_0, tier: hot, port: 1}}'"[1:-1]],
            "config/bad-name",
            "servers._a",
            None,
        ),
    ],
)
def test_a_name_that_leads_nowhere_is_a_finding(
    conf: Conf, overrides: list[str], code: str, key: str, fix: str | None
) -> None:
    """Its code, its key, its place, and an override that removes it."""
    finding = next(f for f in conf.findings(*overrides) if f.severity == "error")
    assert (finding.code, finding.key) == (code, key)
    assert [f.override for f in finding.fixes][:1] == ([fix] if fix else [])
    if fix and overrides != ["~ports"]:
        conf.works(finding, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        # fallback may be mutual: no server is tried twice for one request
        ["routing.fallback={coder: [frontdoor], frontdoor: [coder]}"],
        ["servers.coder.roles=[frontdoor]"],
        ["servers.coder.aliases=[coder]"],
        ["routing.default=frontdoor", "servers.frontdoor.aliases=[hello]", "routing.fallback={coder: [hello]}"],
        ["+ports.nobody=9000"],
        ["+services.s={builtin: front}"],
        ["hooks={h: {http: nobody/x, enabled: false}}"],
        ["servers.coder.devices=[cuda0]"],
    ],
)
def test_what_is_allowed(conf: Conf, overrides: list[str]) -> None:
    """Mutual fallback, shared roles, unused ports, a hook that is off."""
    assert conf.compose(*overrides).findings == ()


@pytest.mark.parametrize(
    "rule", ["routing.fallback={zzz: [coder]}", "routing.escalation.chain={zzz: coder}", "routing.timeouts_s={zzz: 3}"]
)
def test_a_rule_for_nobody_is_a_warning(conf: Conf, rule: str) -> None:
    """It is dead, not wrong; the fix drops it."""
    (warning,) = conf.compose(rule).findings
    assert (warning.severity, warning.code) == ("warning", "config/dangling")
    assert conf.compose(rule, warning.fixes[0].override).findings == ()


def test_dropping_a_server_leaves_references_as_findings(conf: Conf) -> None:
    """~servers.x removes the server alone."""
    conf.write(
        {
            "profile/dev.yaml": FILES["profile/dev.yaml"]
            + "routing:\n  default: coder\n  pools: {p: {servers: [coder, frontdoor]}}\n"
        }
    )
    found = conf.findings("~servers.coder")
    assert [(f.key, conf.where(f)) for f in found] == [
        ("routing.default", "profile/dev.yaml:8:12"),
        ("routing.pools.p.servers.0", "profile/dev.yaml:9:25"),
    ]


def test_references_wait_for_missing_files(conf: Conf) -> None:
    """A server whose file does not exist is one finding, not one for every rule that names it."""
    finding = conf.finding("+server=embeder", "routing.default=embeder")
    assert finding.code == "config/unknown-option"


def test_a_missing_reference_is_not_also_dangling(conf: Conf) -> None:
    """A stand-in for a missing value is passed over."""
    finding = conf.finding("~servers.coder.model")
    assert finding.code == "config/missing"
    assert conf.where(finding) == "server/coder.yaml:1:1"


def test_every_check_states_its_rule() -> None:
    """The table of checks is documented, each by a sentence."""
    assert all(check.__doc__ for check in CHECKS)
    assert len(set(CHECKS)) == len(CHECKS)


def test_cycles_are_found_once() -> None:
    """Each cycle of a graph, with names outside it left out."""
    assert cycles({"a": ["b"], "b": ["c"], "c": ["b"], "d": ["a"]}) == [["b", "c"]]
    assert cycles({"a": ["a"], "b": ["x"]}) == [["a"]]
    assert cycles({"a": ["b", "c"], "b": ["c"], "c": []}) == []


def test_locate_takes_the_nearest() -> None:
    """Its own place, an ancestor's, a descendant's, or none; what has one keeps it."""
    here = Location(file="f", line=3)
    sources = SourceMap(locations={"a.b": here, "servers.x.model": Location(file="g", line=1)})

    def at(key: str, location: Location | None = None) -> Location | None:
        finding = Finding(code="x/y", severity="note", key=key, message="", location=location)
        return locate([finding], sources)[0].location

    assert at("a.b") == at("a.b.c.d") == here
    assert at("servers") == Location(file="g", line=1)
    assert at("zzz") is None
    assert at("") is None
    assert at("zzz", here) == here


def test_flatten_lists_every_value_once(conf: Conf) -> None:
    """Leaves with dotted keys; plain lists are one value; each has a place."""
    assert flatten({"a": {"b": [1, 2], "c": {}}, "d": [{"e": 1}, []], "f": None}) == [
        ("a.b", [1, 2]),
        ("a.c", {}),
        ("d.0.e", 1),
        ("d.1", []),
        ("f", None),
    ]
    assert flatten({}) == []
    composed = compose(["servers.coder.slots=4"], config_dirs=[conf.root])
    flat = dict(flatten(composed.tree))
    assert flat["servers.coder.slots"] == 4
    assert set(flat) <= set(composed.sources.locations)
    assert str(composed.sources.locations["servers.coder.slots"]) == "<command line>:1:1"
