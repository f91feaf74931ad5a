"""Fleets of several hosts: each is planned as if it were alone, and the front's host knows where the others are."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.ir.config import (
    FleetConfig,
    FrontConfig,
    HookConfig,
    HostConfig,
    RoutingConfig,
    RuntimeConfig,
    ServerConfig,
)
from launcher.ir.documents import plan_document
from launcher.ir.plan import FleetPlan
from launcher.plan import plan_fleet, plan_of_host
from launcher.plan.hosts import split
from launcher.render.routes import routing_table
from launcher.sizes import GIB

from .fleets import TINY, catalog, codes, fleet, hardware, model_file, only, planned, server

MACHINE = hardware(gpus={"cuda0": 4 * GIB}, ram_reserve_bytes=4 * GIB)
HOSTS = {
    "alpha": HostConfig(address="10.0.0.1", api_key_file="/etc/launch/alpha.key"),
    "beta": HostConfig(address="10.0.0.2", api_key_file="/etc/launch/beta.key", ram_bytes=16 * GIB),
    "gamma": HostConfig(address="10.0.0.3", api_key_file="/etc/launch/gamma.key", gpus={}),
}
SEVERAL = msgspec.structs.replace(MACHINE, hosts=HOSTS)


def several(servers: dict[str, ServerConfig], **fields: Any) -> FleetPlan:
    """A plan on three hosts; a server's `host` says on which."""
    return planned(servers, **({"hardware": SEVERAL} | fields))


def test_each_host_has_its_own_ledger() -> None:
    """RAM and cards by host, the front's first; a host has what it says, else what stands above it."""
    plan = several({"a": server(), "b": server(host="beta"), "c": server(host="beta")})
    rows = [(d.host, d.name, d.capacity_bytes // GIB, d.planned_bytes > 0) for d in plan.devices]
    assert rows == [
        ("alpha", "ram", 64, True),
        ("alpha", "cuda0", 4, False),
        ("beta", "ram", 16, True),
        ("beta", "cuda0", 4, False),
        ("gamma", "ram", 64, False),
    ]
    assert [(s.name, s.on, s.config.host) for s in plan.servers] == [
        ("a", "alpha", "127.0.0.1"),
        ("b", "beta", "10.0.0.2"),
        ("c", "beta", "10.0.0.2"),
    ]


def test_a_budget_is_a_hosts_own() -> None:
    """What fits one host is too much for another, and the finding names that one."""
    big = server(model="big", quantization="q8_0", n_ctx=100_000, cache_type_k="f32", cache_type_v="f32")
    arch = msgspec.structs.replace(TINY, n_layer=32, n_embd=1024, n_head=16, n_head_kv=16, n_ctx_train=100_000)
    models = (model_file(), model_file(arch, name="big"))
    here = planned({"a": big}, *models, hardware=SEVERAL)
    there = planned({"a": msgspec.structs.replace(big, host="beta")}, *models, hardware=SEVERAL)
    assert codes(here) == ["note plan/card-idle"]  # alpha has a card, too
    found = [f for f in there.findings if f.code == "plan/ram-over-budget"]
    assert [f.key for f in found] == ["hardware.hosts.beta.ram_bytes"]
    assert found[0].message.startswith("beta: ram has a budget of 12.0 GiB")


def test_a_port_is_a_hosts_own() -> None:
    """The same number on two hosts is no conflict; twice on one is."""
    apart = several({"a": server(port=9001), "b": server(port=9001, host="beta")}, ports={"a": 9001, "b": 9001})
    assert codes(apart) == []
    together = several({"a": server(port=9001, host="beta"), "b": server(port=9001, host="beta")}, ports={})
    assert codes(together)[:2] == ["error plan/port-conflict"] * 2


def test_the_fronts_port_is_taken_on_its_host_only() -> None:
    """A server may have the front's port elsewhere, and not beside it."""
    front = RuntimeConfig(front=FrontConfig(host="beta", port=9001, api_key_file="k"))
    clash = {"a": server(port=9001, host="beta")}
    assert codes(several({"a": server(port=9001, host="alpha")}, runtime=front, ports={})) == []
    assert codes(several(clash, runtime=front, ports={})) == []  # loopback beside the front's address
    everywhere = RuntimeConfig(front=FrontConfig(host="0.0.0.0", port=9001, api_key_file="k"))
    found = codes(several({"a": server(port=9001, host="alpha")}, runtime=everywhere, ports={}))
    assert found == ["error plan/port-conflict"] * 2


def test_servers_beside_the_front_listen_on_loopback() -> None:
    """By name or by address; without a key, which only other hosts must show."""
    plan = several({"a": server(host="alpha"), "b": server(host="127.0.0.5"), "c": server(host="beta")})
    assert [(s.on, s.config.host, s.config.extra_args) for s in plan.servers] == [
        ("alpha", "127.0.0.1", ()),
        ("alpha", "127.0.0.5", ()),
        ("beta", "10.0.0.2", ("--api-key-file", "/etc/launch/beta.key")),
    ]


def test_a_unix_socket_is_beside_the_front() -> None:
    """Nobody on another host could ask it; it asks for no key."""
    plan = several({"a": server(host="/run/launch-a/http.sock", port=None), "b": server(host="beta")})
    a = only(plan, "a")
    assert (a.on, a.config.host, a.port, a.config.extra_args) == ("alpha", "/run/launch-a/http.sock", 0, ())
    (shown,) = (s for s in plan_document(plan, {"a": (), "b": ()}, {})["servers"] if s["name"] == "a")
    assert (shown["socket"], shown["port"], shown["host"]) == ("/run/launch-a/http.sock", 0, "alpha")


def test_a_servers_own_key_is_kept() -> None:
    """One that names a key file gets no second one."""
    plan = several({"a": server(host="beta", extra_args=("--api-key-file=/own.key",))})
    assert only(plan, "a").config.extra_args == ("--api-key-file=/own.key",)


def test_the_front_asks_every_host_and_the_others_ask_themselves() -> None:
    """Addresses, keys, and that who runs elsewhere is not started from here."""
    servers = {"a": server(), "b": server(host="beta", tier="warm"), "c": server(host="gamma", exclusive="x")}
    plan = several(servers)
    front = routing_table(plan_of_host(plan, "alpha"))
    assert {n: (t.host, t.on, t.start, t.exclusive, t.api_key_file) for n, t in front.targets.items()} == {
        "a": ("127.0.0.1", "", "boot", None, None),
        "b": ("10.0.0.2", "beta", "boot", None, "/etc/launch/beta.key"),
        "c": ("10.0.0.3", "gamma", "boot", None, "/etc/launch/gamma.key"),
    }
    other = routing_table(plan_of_host(plan, "beta"))
    assert {n: (t.host, t.on, t.start) for n, t in other.targets.items()} == {"b": ("10.0.0.2", "", "demand")}
    assert other.front.host == "127.0.0.1"


def test_a_role_of_several_hosts_is_a_default_by_its_name() -> None:
    """Requests without a model go to any of the replicas, not to the first alone."""
    routing = RoutingConfig(default="chat")
    plan = several({"a": server(roles=("chat",)), "b": server(host="beta", roles=("chat",))}, routing=routing)
    table = routing_table(plan_of_host(plan, "alpha"))
    assert (table.default, table.names["chat"]) == ("chat", ("a", "b"))


def test_what_a_host_gets_of_the_config() -> None:
    """Its servers, its machine, hooks of its servers; the orchestration and other hooks go with the front."""
    hooks = {
        "mine": HookConfig(http="b/completion"),
        "first": HookConfig(command=("true",)),
    }
    plan = several({"a": server(), "b": server(host="beta")}, hooks=hooks)
    alpha, beta = plan_of_host(plan, "alpha"), plan_of_host(plan, "beta")
    assert (list(alpha.config.hooks), list(beta.config.hooks)) == (["first"], ["mine"])
    assert (list(alpha.config.servers), list(beta.config.servers)) == (["a"], ["b"])
    assert (beta.config.hardware.ram_bytes, beta.config.hardware.hosts) == (16 * GIB, {})
    assert (alpha.deployment, beta.deployment) == ("test-alpha", "test-beta")
    assert (alpha.front, beta.front) == (True, False)
    with pytest.raises(KeyError):
        plan_of_host(plan, "delta")


def test_findings_about_hosts() -> None:
    """No key, a foreign wait, a server that nobody there starts: each said once, in the config's terms."""
    bare = {"one": HostConfig(address="10.0.0.1"), "two": HostConfig(address="10.0.0.2")}
    servers = {
        "a": server(host="one"),
        "b": server(host="two", after=("a",)),
        "c": server(host="two", tier="warm"),
    }
    plan = planned(servers, hardware=msgspec.structs.replace(MACHINE, hosts=bare, gpus={}))
    found = {f.code: (f.key, f.message) for f in plan.findings if f.severity != "note"}
    assert found.keys() == {"plan/host-without-key", "plan/after-other-host", "plan/remote-demand"}
    assert found["plan/host-without-key"][0] == "hardware.hosts.two.api_key_file"
    assert found["plan/host-without-key"][1].startswith("b, c on two listen on 10.0.0.2 and ask nobody for a key")
    assert found["plan/after-other-host"][0] == "servers.b.after"
    assert only(plan, "b").after == ()
    assert found["plan/remote-demand"][1].startswith("c on two start")


@pytest.mark.parametrize(
    ("one", "two", "wrong"),
    [
        ("10.0.0.1", "10.0.0.1", ["one", "two"]),
        ("10.0.0.1", "127.0.0.1", ["two"]),
        ("0.0.0.0", "10.0.0.2", ["one"]),
        ("", "10.0.0.2", ["one"]),
        ("http://x", "10.0.0.2", ["one"]),
        ("10.0.0.1", "10.0.0.2:8080", ["two"]),
        ("10.0.0.1", "node2:8080", ["two"]),
        ("10.0.0.1", "10.0.0.256", ["two"]),
        ("10.0.0.1", "node2,node3", ["two"]),
        ("10.0.0.1", "two.sock", ["two"]),
        ("fe80::1%eth0", "node_2.example.", []),
        ("node", "rack.7", []),
        ("127.0.0.1", "127.0.0.2", []),
        ("node1.example", "node2.example", []),
        ("fd00::1", "fd00::2", []),
    ],
)
def test_addresses_that_others_can_reach(one: str, two: str, wrong: list[str]) -> None:
    """Not shared, not a wildcard, no URL, no port, not loopback unless all are (hosts of a test on one machine)."""
    hosts = {"one": HostConfig(address=one, api_key_file="k"), "two": HostConfig(address=two, api_key_file="k")}
    plan = planned({"a": server(), "b": server(host="two")}, hardware=msgspec.structs.replace(MACHINE, hosts=hosts))
    found = [f.key for f in plan.findings if f.code == "plan/host-address"]
    assert found == [f"hardware.hosts.{name}.address" for name in wrong]


def test_the_json_names_hosts_only_where_there_are_several() -> None:
    """One machine's document has no trace of hosts; several say where, and where the front is."""
    alone = planned({"a": server()})
    document = plan_document(alone, {"a": ()}, {})
    assert "hosts" not in document["hardware"]
    assert {"host", "address"} & {*document["servers"][0], *document["hardware"]["devices"][0]} == set()
    plan = several({"a": server(), "b": server(host="beta")}, runtime=RuntimeConfig(front=FrontConfig(host="beta")))
    document = plan_document(plan, {"a": (), "b": ()}, {})
    assert [(h["name"], h["front"]) for h in document["hardware"]["hosts"]] == [
        ("alpha", False),
        ("beta", True),
        ("gamma", False),
    ]
    assert [(s["name"], s["host"], s["address"]) for s in document["servers"]] == [
        ("a", "beta", "127.0.0.1"),
        ("b", "beta", "127.0.0.1"),
    ]


placed_servers = st.lists(
    st.tuples(
        st.sampled_from([*HOSTS, "127.0.0.1"]),
        st.fixed_dictionaries(
            {
                "n_ctx": st.integers(1, 20_000),
                "tier": st.sampled_from(["hot", "warm", "cold"]),
                "exclusive": st.sampled_from([None, None, "x"]),
                "load_mode": st.sampled_from(["mmap", "none", "mmap+mlock"]),
                "devices": st.sampled_from([(), ("cuda0",)]),
                "n_gpu_layers": st.sampled_from([0, "all", "auto"]),
                "cache_ram_mib": st.integers(0, 100_000),
            }
        ),
    ),
    max_size=8,
)


@settings(max_examples=60)
@given(placed_servers)
def test_a_host_is_planned_as_if_it_were_alone(placed: list[tuple[str, dict[str, Any]]]) -> None:
    """Servers, memory and start order of each host are those of a fleet of its servers on that machine alone."""
    servers = {f"s{i}": server(host=host, **fields) for i, (host, fields) in enumerate(placed)}
    whole = fleet(servers, hardware=SEVERAL)
    plan = plan_fleet(whole, catalog(), deployment="test", input_digest="")
    assert sorted(s.name for s in plan.servers) == sorted(servers)
    for name in HOSTS:
        mine = {n: s for n, s in servers.items() if (s.host if s.host in HOSTS else "alpha") == name}
        machine = SEVERAL.machine(name)
        bare = {n: msgspec.structs.replace(s, host="127.0.0.1") for n, s in mine.items()}
        alone: FleetConfig = msgspec.structs.replace(whole, hardware=machine, servers=bare)
        expected = plan_fleet(alone, catalog(), deployment="test", input_digest="")
        part = plan_of_host(plan, name)
        assert [(s.name, s.memory, s.after, s.settings.n_gpu_layers) for s in part.servers] == [
            (s.name, s.memory, s.after, s.settings.n_gpu_layers) for s in expected.servers
        ]
        assert [msgspec.structs.replace(d, host=msgspec.UNSET) for d in part.devices] == list(expected.devices)


class Counted(dict[str, int]):
    """Ports that count how often all of them are gone through."""

    rounds = 0

    def items(self) -> Any:
        """All of them."""
        self.rounds += 1
        return super().items()


def test_a_host_is_not_dearer_among_many() -> None:
    """What is the fleet's own is gone through once, not once a host: a thousand hosts have ten thousand ports."""
    hosts = {f"h{i}": HostConfig(address=f"10.0.0.{i}", api_key_file="/etc/launch/key") for i in range(1, 40)}
    servers = {f"s{name}": server(host=name) for name in hosts}
    ports = Counted(dict.fromkeys(servers, 9001) | {"nobody": 9002})
    parts = split(fleet(servers, hardware=msgspec.structs.replace(MACHINE, hosts=hosts), ports=ports))
    assert ports.rounds == 1
    assert [part.fleet.ports for part in parts] == [{f"s{name}": 9001} for name in hosts]
