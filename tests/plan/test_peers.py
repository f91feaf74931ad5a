"""One model over several hosts: what lies where, what is started there, and which peers are refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from launcher.ir.config import GpuConfig, HardwareConfig, HostConfig, ServerConfig, ServiceConfig
from launcher.ir.plan import FleetPlan
from launcher.plan import plan_fleet, plan_of_host
from launcher.plan.peers import PROCESS_BYTES, peer_devices, with_peers
from launcher.sizes import GIB

from .fleets import LLAMA_8B, catalog, codes, fleet, hardware, model_file, only, server

HOSTS = {
    "alpha": HostConfig(address="10.0.0.1", api_key_file="/k"),
    "beta": HostConfig(address="10.0.0.2", api_key_file="/k", ram_bytes=16 * GIB),
    "gamma": HostConfig(
        address="192.168.0.3", gpus={"cuda0": GpuConfig(backend="cuda", vram_bytes=8 * GIB, target_min=0)}
    ),
}
SEVERAL = msgspec.structs.replace(hardware(), hosts=HOSTS)


PROGRAMS = {"default": "/opt/llama/llama-server"}
BIG = model_file(LLAMA_8B)


def spread(
    machines: HardwareConfig = SEVERAL, others: dict[str, ServerConfig] | None = None, **written: Any
) -> FleetPlan:
    """The plan of an 8B on the first host with peers, beside `others`."""
    config = fleet({"a": server(**{"n_gpu_layers": "all"} | written), **(others or {})}, hardware=machines)
    return plan_fleet(with_peers(config, PROGRAMS), catalog(BIG), deployment="t", input_digest="sha256:0")


def test_a_peer_has_its_share() -> None:
    """A device of the server, which counts on the peer's host as the process that lends it."""
    plan = spread(rpc=("beta",))
    head, lender = only(plan, "a"), plan.services[0]
    assert head.settings.devices == ("a-rpc0",)
    share = head.takes("a-rpc0")
    assert share is not None
    assert share.model_bytes > 0.8 * BIG.tensor_bytes
    assert (lender.name, lender.on, lender.port, lender.config.host) == ("a-rpc0", "beta", 50052, "10.0.0.2")
    assert lender.config.ram_bytes == share.resident_peak_bytes + PROCESS_BYTES
    assert lender.config.command[0] == "/opt/llama/ggml-rpc-server"
    used = {d.host: d.planned_bytes for d in plan.devices if d.name == "ram"}
    assert used["beta"] == lender.config.ram_bytes
    assert used["gamma"] == 0
    beta = plan_of_host(plan, "beta")
    assert [(s.name, s.config.ram_bytes) for s in beta.services] == [("a-rpc0", lender.config.ram_bytes)]
    alpha = plan_of_host(plan, "alpha")
    assert alpha.services == ()
    assert alpha.config.hardware.gpus["a-rpc0"].endpoint == "10.0.0.2:50052"
    assert [c for c in codes(plan) if "rpc" in c] == ["note plan/rpc-experimental"]


def test_a_card_of_a_peer_counts_there() -> None:
    """The peer's first card, as llama.cpp calls it, with the room that it has; its RAM has the process alone."""
    plan = spread(rpc=("beta", "gamma"), tensor_split=(1, 1))
    by_host = {s.on: s for s in plan.services}
    gamma = by_host["gamma"]
    share = only(plan, "a").takes("a-rpc1")
    assert share is not None
    assert gamma.config.vram_bytes == {"cuda0": share.resident_peak_bytes}
    assert gamma.config.ram_bytes == PROCESS_BYTES
    assert gamma.config.command[-2:] == ("--device", "CUDA0")
    assert by_host["beta"].config.command[-2:] == ("--device", "CPU")
    (card,) = [d for d in plan.devices if (d.host, d.name) == ("gamma", "cuda0")]
    assert card.planned_bytes == share.resident_peak_bytes


def test_a_share_that_does_not_fit_is_found_where_it_lies() -> None:
    """The peer's host is too small for what it would lend: its own budget says so."""
    small = {**HOSTS, "beta": msgspec.structs.replace(HOSTS["beta"], ram_bytes=4 * GIB)}
    plan = spread(msgspec.structs.replace(SEVERAL, hosts=small), rpc=("beta",))
    keys = {f.key for f in plan.findings if f.severity == "error"}
    assert "hardware.hosts.beta.ram_bytes" in keys


def test_as_many_layers_as_fit() -> None:
    """Where no layers are written, the peers have what they have room for, and the server the rest."""
    small = {**HOSTS, "beta": msgspec.structs.replace(HOSTS["beta"], ram_bytes=4 * GIB)}
    plan = spread(msgspec.structs.replace(SEVERAL, hosts=small), rpc=("beta",), n_gpu_layers=0)
    head = only(plan, "a")
    share, own = head.takes("a-rpc0"), head.takes("ram")
    assert share is not None
    assert own is not None
    assert min(share.model_bytes, own.planned_bytes) > GIB
    assert [f for f in plan.findings if f.severity == "error"] == []


def test_ports_of_peers_differ() -> None:
    """Two servers on one peer have a process each; a written port is kept, and one that is used is passed over."""
    plan = spread(others={"b": server(rpc=("beta", "beta:50060")), "c": server(port=50053)}, rpc=("beta",))
    assert {s.name: s.port for s in plan.services} == {"a-rpc0": 50052, "b-rpc0": 50054, "b-rpc1": 50060}
    assert peer_devices(plan.config) == {"a-rpc0", "b-rpc0", "b-rpc1"}


def test_peers_of_somebody_else() -> None:
    """An address: a device, and no process of ours; on one machine as well."""
    plan = spread(hardware(), rpc=("10.1.2.3:50052",))
    assert plan.services == ()
    assert plan.config.hardware.gpus["a-rpc0"].endpoint == "10.1.2.3:50052"
    share = only(plan, "a").takes("a-rpc0")
    assert share is not None
    assert share.model_bytes > 0


@pytest.mark.parametrize(("tier", "starts"), [("hot", "boot"), ("warm", "boot"), ("cold", None)])
def test_when_a_peer_runs(tier: str, starts: str | None) -> None:
    """Always, for a server on demand too, since nobody asks a peer to start; of one that never runs there is none."""
    plan = spread(rpc=("beta",), tier=tier)
    assert [s.starts for s in plan.services] == ([starts] if starts else [])


REFUSED = {
    "delta": "none of hardware.hosts",
    "8.8.8.8:50052": "no private address",
    "172.32.0.1:1": "no private address",
    "example.com:50052": "no address",
    "fd00::1": "HOST:PORT",
    "10.0.0.1:0": "HOST:PORT",
    "10.0.0.1:": "HOST:PORT",
    "public": "8.8.4.4 is no private address",
    "six": "IPv4",
}
TAKEN = ("beta", "beta:1", "127.0.0.1:50052", "10.255.0.1:9", "172.31.0.1:9", "192.168.1.1:9")


@pytest.mark.parametrize("written", REFUSED)
def test_what_is_no_peer(written: str) -> None:
    """No host, no address, or one that others reach: an error where it is written, and no device of it."""
    hosts = {**HOSTS, "public": HostConfig(address="8.8.4.4"), "six": HostConfig(address="fd00::1")}
    plan = spread(msgspec.structs.replace(SEVERAL, hosts=hosts), rpc=(written,))
    found = [f for f in plan.findings if f.code == "plan/rpc-peer"]
    assert [(f.severity, f.key) for f in found] == [("error", "servers.a.rpc.0")]
    assert REFUSED[written] in found[0].message
    assert plan.services == ()


@pytest.mark.parametrize("written", TAKEN)
def test_what_is_a_peer(written: str) -> None:
    """Hosts and private addresses."""
    assert "error plan/rpc-peer" not in codes(spread(rpc=(written,)))


def refused(plan: FleetPlan) -> dict[str, str]:
    """Peers that are refused, by their keys."""
    return {f.key: f.message for f in plan.findings if f.code == "plan/rpc-peer"}


def test_a_peer_has_one_client() -> None:
    """Twice in one list, or for two servers that are up at once: the second would wait for ever."""
    there = "10.1.2.3:50052"
    assert list(refused(spread(rpc=(there, there)))) == ["servers.a.rpc.1"]
    others = {"b": server(rpc=(there,))}
    assert "a-rpc0" in refused(spread(others=others, rpc=(there,)))["servers.b.rpc.0"]
    assert list(refused(spread(others={"b": server(rpc=("10.0.0.2:50052",))}, rpc=("beta",)))) == ["servers.b.rpc.0"]
    cold = {"b": server(rpc=(there,), tier="cold")}
    assert refused(spread(others=cold, rpc=(there,))) == {}
    turns = {"b": server(rpc=(there,), exclusive="t")}
    assert refused(spread(others=turns, rpc=(there,), exclusive="t", default=True)) == {}
    assert refused(spread(rpc=("beta", "beta"))) == {}


def test_a_name_of_a_peer_is_its_own() -> None:
    """Nobody's service, server or card is written over by a peer that would have its name."""
    service = ServiceConfig(command=("/bin/true",), port=9999)
    config = fleet({"a": server(rpc=("beta",))}, hardware=SEVERAL, services={"a-rpc0": service})
    changed = with_peers(config, PROGRAMS)
    assert changed.services["a-rpc0"] == service
    plan = plan_fleet(changed, catalog(BIG), deployment="t", input_digest="sha256:0")
    assert "another's name" in refused(plan)["servers.a.rpc.0"]
    assert list(refused(spread(others={"a-rpc0": server(port=9998)}, rpc=("beta",)))) == ["servers.a.rpc.0"]
    card = msgspec.structs.replace(SEVERAL, gpus={"a-rpc0": GpuConfig(backend="cuda", vram_bytes=8 * GIB)})
    assert list(refused(spread(card, rpc=("beta",), devices=("a-rpc0",)))) == ["servers.a.rpc.0"]


def test_without_peers_nothing_changes() -> None:
    """The very same config."""
    config = fleet({"a": server()}, hardware=SEVERAL)
    assert with_peers(config, PROGRAMS) is config
