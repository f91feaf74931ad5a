"""The plan against a host: every check triggers on a host that lacks something, and none on one that has all."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launcher.base.programs import NOT_HERE
from launcher.hardware import HostFacts, check_host, describe_checks, gather_facts, missing_models, take_inventory
from launcher.hardware.facts import port_taken
from launcher.ir.catalog import StoredFile
from launcher.ir.fleet import (
    BreakerUnit,
    DeviceBudget,
    DeviceNeed,
    FleetManifest,
    FrontUnit,
    RoutingTable,
    ServerUnit,
    ServiceUnit,
    SupervisorUnit,
)
from launcher.ir.host import HostGpu, HostInventory
from launcher.sizes import GIB
from launcher.supervise import port_owner

HOST = HostInventory(
    hostname="h", cpu_model="", features=(), sockets=1, physical_cores=4, logical_cores=8, cpus="0-7",
    ram_bytes=32 * GIB, available_bytes=24 * GIB, nodes=(), gpus=(), memlock_bytes=None, numactl=None,
)  # fmt: skip


def server(**changes: object) -> ServerUnit:
    """A small server that any host can run."""
    base = ServerUnit(
        name="a", roles=(), aliases=(), argv=("sh", "-c", "true"), env={}, host="127.0.0.1", port=1, model="m",
        model_path="/dev/null", files=("/dev/null",), slots=1, n_ctx_per_slot=256, probe="completion", tier="hot",
        start="boot", idle_timeout_s=0, expansion_threshold=0, exclusive=None, default=False, after=(),
        start_timeout_s=1, stall_timeout_s=1, request_timeout_s=1, stop_grace_s=1, fatal=True, request_defaults={},
        memory=(DeviceNeed(device="ram", committed_bytes=GIB, peak_bytes=GIB, file_bytes=GIB),), argv_digest="",
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def test_a_pipe_in_the_place_of_a_model_is_said_and_not_waited_for(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """Nobody writes to it: whoever reads it waits for ever."""
    pipe = tmp_path / "m.gguf"
    os.mkfifo(pipe)
    manifest = fleet(server(files=(str(pipe),)))
    facts = gather_facts(manifest, routes(free_port()), HOST, running={}, state_dir=tmp_path)
    assert facts.missing_files == {str(pipe): "it is a pipe"}


def fleet(*servers: ServerUnit) -> FleetManifest:
    """A manifest with these servers on one RAM and one GPU."""
    return FleetManifest(
        deployment="d", input_digest="", launch_version="", hardware="h",
        devices=(DeviceBudget(name="ram", kind="ram", capacity_bytes=32 * GIB, budget_bytes=32 * GIB),
                 DeviceBudget(name="cuda0", kind="gpu", capacity_bytes=8 * GIB, budget_bytes=8 * GIB)),
        servers=servers, services=(), hooks=(),
        supervisor=SupervisorUnit(
            state_dir=None, log_max_bytes=1, log_files=1, backoff_s=1, backoff_max_s=1, crash_loop_failures=1,
            crash_loop_window_s=1, health_interval_s=1, health_failures=1, drain_timeout_s=1, max_parallel_starts=1,
        ),
    )  # fmt: skip


def routes(port: int) -> RoutingTable:
    """A routing table whose front listens on `port`."""
    return RoutingTable(
        deployment="d", targets={}, names={}, default=None, pools=(), fallback={}, escalation={},
        max_retries=0, max_escalations=0, breaker=BreakerUnit(failures=3, open_s=1, open_max_s=1), timeouts_s={},
        front=FrontUnit(
            host="127.0.0.1", port=port, api_key_file=None, max_body_bytes=1, max_header_bytes=1, header_timeout_s=1,
            idle_timeout_s=1, connect_timeout_s=1, queue_size=1, queue_timeout_s=1, allowed_hosts=(), access_log=False,
        ),
    )  # fmt: skip


def codes(manifest: FleetManifest, facts: HostFacts) -> list[str]:
    """Codes of all findings."""
    return [f.code for f in check_host(manifest, facts)]


def test_a_host_that_has_everything_is_silent(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """No finding on a real host with files, program, ports and memory for a tiny server."""
    manifest = fleet(server(port=free_port()))
    facts = gather_facts(manifest, routes(free_port()), take_inventory(), running={}, state_dir=tmp_path / "not/yet")
    assert codes(manifest, facts) == []


def test_everything_missing_is_all_said_at_once(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """Missing file, missing binary and a taken port are found together, each naming what it is about."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        manifest = fleet(server(files=("/nowhere/model.gguf",), argv=("/nowhere/llama-server",), port=port))
        front = routes(free_port())
        facts = gather_facts(manifest, front, HOST, running={}, state_dir=tmp_path, owner=port_owner)
        findings = check_host(manifest, facts)
    assert [f.code for f in findings] == ["host/file-missing", "engine/missing-binary", "host/port-taken"]
    assert "/nowhere/model.gguf: No such file or directory" in findings[0].notes
    assert re.fullmatch(rf"a: port {port} is held by \S+ \(pid {os.getpid()}\)", findings[2].message)


def test_replicas_that_lack_one_file_are_one_finding() -> None:
    """Servers that need the same missing files are named together; long lists are cut."""
    parts = tuple(f"/m/{n}.gguf" for n in range(8))
    facts = HostFacts(host=HOST, missing_files=dict.fromkeys(parts, "No such file or directory"))
    (finding,) = check_host(fleet(server(files=parts), server(name="b", files=parts)), facts)
    assert finding.message == "a, b: 8 model files cannot be read"
    assert "and 5 more" in finding.notes


def test_our_own_running_server_is_not_a_stranger(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """The port and the memory of a server of this fleet that already runs are counted as ours."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        manifest = fleet(server(port=holder.getsockname()[1]))
        facts = gather_facts(manifest, routes(free_port()), HOST, running={"a": GIB}, state_dir=tmp_path)
    assert facts.our_bytes == GIB
    assert codes(manifest, facts) == []


def test_a_port_that_a_running_server_shares_with_its_group_is_ours(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """Of servers that take turns on one port one runs, without a runtime: the others may have it after it."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        turns = [server(name=name, port=port, exclusive="workers") for name in ("a", "b")]
        alone = server(name="c", port=port)
        facts = gather_facts(fleet(*turns, alone), routes(free_port()), HOST, running={"a": GIB}, state_dir=tmp_path)
    assert list(facts.taken_ports) == ["c"]


@pytest.mark.parametrize(
    ("available", "expected"), [(GIB // 2, ["host/ram-short"]), (3 * GIB // 2, ["host/ram-tight"]), (2 * GIB, [])]
)
def test_ram_is_what_is_available_now(available: int, expected: list[str]) -> None:
    """Committed bytes must fit; file-backed bytes that do not only warn."""
    host = msgspec.structs.replace(HOST, available_bytes=available)
    assert codes(fleet(server()), HostFacts(host=host)) == expected


def test_missing_ram_is_named() -> None:
    """The message says how much is missing."""
    host = msgspec.structs.replace(HOST, available_bytes=GIB // 2)
    (finding,) = check_host(fleet(server()), HostFacts(host=host))
    assert "1.5 GiB of RAM are missing" in finding.message


def test_gpus_must_exist_and_have_room() -> None:
    """A planned GPU that is not there, and one that is full, are errors."""
    need = DeviceNeed(device="cuda0", committed_bytes=4 * GIB, peak_bytes=4 * GIB, file_bytes=0)
    manifest = fleet(server(memory=(need,)))
    assert codes(manifest, HostFacts(host=HOST)) == ["host/gpu-missing"]
    for free, expected in ((3 * GIB, ["host/vram-short"]), (5 * GIB, [])):
        card = HostGpu(name="cuda0", backend="cuda", model="", vram_bytes=8 * GIB, free_bytes=free)
        assert codes(manifest, HostFacts(host=msgspec.structs.replace(HOST, gpus=(card,)))) == expected


def test_a_gpu_that_nobody_can_list_is_not_called_missing() -> None:
    """Of a backend that only a binary lists, where none is here: said as such, and no finding."""
    need = DeviceNeed(device="cuda0", committed_bytes=4 * GIB, peak_bytes=4 * GIB, file_bytes=0)
    manifest = fleet(server(memory=(need,)))
    facts = HostFacts(host=HOST, unseen_gpus=("cuda0",))
    assert codes(manifest, facts) == []
    assert dict(describe_checks(manifest, facts))["cuda0"] == "4.0 GiB needed, nobody here can list it"


def test_a_cpu_quota_bounds_threads() -> None:
    """More threads than CPUs' time is a warning with a number that fits; as many are none, nor is a cold server."""
    words = ("llama-server", "--threads", "4")
    for quota, expected in ((None, []), (4.0, []), (2.5, ["host/cpu-quota"])):
        facts = HostFacts(host=msgspec.structs.replace(HOST, cpu_quota=quota))
        assert codes(fleet(server(argv=words)), facts) == expected
        assert codes(fleet(server(argv=words, start="never")), facts) == []
    (finding,) = check_host(fleet(server(argv=words)), facts)
    assert finding.fixes[0].override == "servers.a.threads=2"
    assert dict(describe_checks(fleet(server()), facts))["cpus"].endswith(", 2.5 CPUs' time")
    for strange in (("x", "--threads"), ("x", "--threads", "many"), ("x",)):
        assert codes(fleet(server(argv=strange)), facts) == []


def test_locked_bytes_need_the_limit() -> None:
    """A lock beyond RLIMIT_MEMLOCK is an error with an override that removes it."""
    need = DeviceNeed(device="ram", committed_bytes=0, peak_bytes=0, file_bytes=GIB, locked_bytes=GIB)
    manifest = fleet(server(memory=(need,)))
    host = msgspec.structs.replace(HOST, memlock_bytes=8 << 20)
    (finding,) = check_host(manifest, HostFacts(host=host))
    assert finding.code == "host/memlock"
    assert finding.fixes[0].override == "servers.a.load_mode=mmap"
    assert codes(manifest, HostFacts(host=HOST)) == []


def test_numactl_and_cpus_are_looked_for() -> None:
    """A server behind numactl needs it, and a CPU list must be within what we are given."""
    manifest = fleet(server(argv=("numactl", "--physcpubind=0", "--interleave=all", "--", "llama-server-x")))
    facts = HostFacts(host=HOST, missing_programs=dict.fromkeys(("llama-server-x", "numactl"), NOT_HERE))
    assert codes(manifest, facts) == ["engine/missing-binary", "host/numactl-missing"]
    bound = fleet(server(argv=("taskset", "--cpu-list", "6-9", "x")))
    assert codes(bound, HostFacts(host=HOST)) == ["host/cpus-missing"]
    assert codes(fleet(server(argv=("taskset", "--cpu-list", "6-7", "x"))), HostFacts(host=HOST)) == []


def formalizer(**changes: Any) -> ServiceUnit:
    """A service that is a command."""
    base = ServiceUnit(
        name="ocr", argv=("formalizer",), env={}, host="127.0.0.1", port=9001, health_path="/health", start="boot",
        start_timeout_s=10, fatal=False, ram_bytes=0, builtin=None, container=None,
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def test_a_service_without_its_program() -> None:
    """A warning where it may fail alone, an error where it may not; of a container it is the engine that is missing."""
    facts = HostFacts(host=HOST, missing_programs=dict.fromkeys(("formalizer", "podman"), NOT_HERE))

    def found(**changes: Any) -> tuple[str, str, str]:
        manifest = msgspec.structs.replace(fleet(server()), services=(formalizer(**changes),))
        (finding,) = check_host(manifest, facts)
        assert finding.code == "host/service-program-missing"
        return finding.severity, finding.key, finding.message

    assert found() == ("warning", "services.ocr.command", "ocr: formalizer is not on this host")
    assert found(fatal=True)[0] == "error"
    box = found(argv=("podman", "run", "x:1"), container="x:1")
    assert box == ("warning", "runtime.container_engine", "ocr: podman, which runs its image x:1, is not on this host")


def test_a_service_with_its_program() -> None:
    """Nothing to say; neither of our own front, which has none."""
    services = (formalizer(), formalizer(name="front", argv=(), builtin="front"))
    assert codes(msgspec.structs.replace(fleet(server()), services=services), HostFacts(host=HOST)) == []


def engine(folder: Path, script: str) -> str:
    """A container engine that does what `script` says."""
    path = folder / "podman"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def boxed(argv0: str) -> FleetManifest:
    """A fleet with one container."""
    box = formalizer(argv=(argv0, "run", "x:1"), container="x:1")
    return msgspec.structs.replace(fleet(server()), services=(box,))


def test_images_are_looked_for(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """The engine is asked; what it does not have is a warning with the command that fetches it."""
    podman = engine(tmp_path, "echo 'Error: x:1: image not known' >&2; exit 125")
    facts = gather_facts(boxed(podman), routes(free_port()), HOST, running={}, state_dir=tmp_path)
    assert facts.missing_images == ("x:1",)
    (finding,) = check_host(boxed(podman), HostFacts(host=HOST, missing_images=("x:1",)))
    assert (finding.code, finding.severity) == ("host/image-missing", "warning")
    assert finding.notes[0].startswith(f"{podman} pull x:1")


@pytest.mark.parametrize("script", ["exit 0", "echo 'Cannot connect to the Docker daemon' >&2; exit 1"])
def test_an_image_that_is_there(tmp_path: Path, free_port: Callable[[], int], script: str) -> None:
    """Or of which nobody says that it is not."""
    podman = engine(tmp_path, script)
    facts = gather_facts(boxed(podman), routes(free_port()), HOST, running={}, state_dir=tmp_path)
    assert facts.missing_images == ()
    assert "host/image-missing" not in [f.code for f in check_host(boxed(podman), facts)]


def test_a_full_disk_is_a_warning() -> None:
    """Too little room for logs is said before a server writes the first line."""
    assert codes(fleet(server()), HostFacts(host=HOST, disk_free={"/state": 1})) == ["host/disk-short"]


def test_a_port_of_a_foreign_address_is_refused_with_a_reason() -> None:
    """An address that is not this host's cannot be bound; the reason is the system's."""
    reason = port_taken("192.0.2.1", 80)
    assert reason
    assert reason.startswith("cannot be bound: ")
    (finding,) = check_host(fleet(server()), HostFacts(host=HOST, taken_ports={"a": reason}))
    assert finding.message == f"a: port 1 {reason}"


def test_numactl_prefixes_are_read() -> None:
    """CPUs and nodes behind numactl, where this host has other ones."""
    words = ("numactl", "--physcpubind=0-3", "--membind=0", "--", "llama-server")
    assert not codes(fleet(server(argv=words)), HostFacts(host=HOST))
    words = ("numactl", "--physcpubind=6-9", "--preferred=1", "--", "llama-server")
    assert codes(fleet(server(argv=words)), HostFacts(host=HOST)) == ["host/cpus-missing", "host/nodes-missing"]
    everywhere = ("numactl", "--interleave=all", "--", "llama-server")
    assert not codes(fleet(server(argv=everywhere)), HostFacts(host=HOST))


def test_what_was_looked_at_is_told_where_all_is_well_and_where_nothing_is() -> None:
    """One line a subject, in both cases."""
    manifest = fleet(server(memory=(DeviceNeed(device="ram", committed_bytes=GIB, peak_bytes=GIB, file_bytes=0),)))
    well = dict(describe_checks(manifest, HostFacts(host=HOST, disk_free={"/state": 9 * GIB})))
    assert well["memory"].startswith("1.0 GiB and 0 MiB of model files needed, 24.0 GiB of 32.0 GiB available now")
    assert well["files"] == "1 to be read, all readable"
    assert well["disk"] == "9.0 GiB free for state and logs in /state"
    bare = HostFacts(
        host=HOST,
        missing_files={"/dev/null": "gone"},
        missing_programs={"numactl": NOT_HERE},
        taken_ports={"a": "is held by nginx (pid 1)"},
    )
    ill = dict(describe_checks(manifest, bare))
    assert ill["files"] == "1 to be read, 1 cannot be read"
    assert ill["programs"] == "numactl is not on this host"
    assert ill["ports"] == "a is held by nginx (pid 1)"
    assert ill["cuda0"].endswith("no such card")
    assert set(ill) == set(well) - {"disk"}


def test_models_to_come_are_counted_by_disk(tmp_path: Path) -> None:
    """What is here does not count; the rest is one sum a disk, at the directory that gets the most of it."""
    files = [
        StoredFile(path=str(tmp_path / "here.gguf"), key="a", bytes=5, here=True, used=True),
        StoredFile(path=str(tmp_path / "big" / "x.gguf"), key="b", bytes=7, here=False, used=True),
        StoredFile(path=str(tmp_path / "small" / "y.gguf"), key="c", bytes=2, here=False, used=False),
    ]
    need, free = missing_models(files)
    assert need == {str(tmp_path / "big"): 9}
    assert free.keys() == need.keys()
    assert free[str(tmp_path / "big")] > 0
    assert missing_models(files[:1]) == ({}, {})


def test_what_is_wrong_with_many_is_said_once() -> None:
    """Servers on the same CPUs, or of the same node, that are not here: one finding that names them all."""
    argv = ("numactl", "--physcpubind=64-71", "--membind=1", "--", "llama-server")
    servers = [msgspec.structs.replace(server(), name=name, argv=argv) for name in ("a", "b", "c")]
    manifest = msgspec.structs.replace(fleet(), servers=tuple(servers))
    found = {f.code: f for f in check_host(manifest, HostFacts(host=HOST)) if f.severity == "error"}
    assert found["host/cpus-missing"].message.startswith("a, b, c run on CPUs 64-71, and this host gives us ")
    assert found["host/nodes-missing"].message.startswith("a, b, c run with memory of NUMA node 1; this host has ")
    assert found["host/nodes-missing"].notes[0].startswith("servers.a.numa=null, and so for each of them")
