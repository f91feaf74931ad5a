"""A container service with the real podman, in a root and a network of its own: how closed it is, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
FLEET = """
servers: {{alpha: {{file: {model}, n_ctx: 256, slots: 1, threads: 1, port: 18081}}}}
engines: {{default: {binary}}}
runtime: {{front: {{port: 18000}}, backoff_s: 0.1}}
services:
  web:
    port: 18082
    ram_bytes: 64MiB
    container: {{image: "web:1", ports: ["18082:8080"], args: [/bin/busybox, httpd, -f, -p, "8080", -h, /www]}}
"""
COMMANDS = """
launch() { PYTHONPATH=$CHECKOUT $PYTHON -c 'from launcher.cli import main; main()' "$@"; }
box() { podman inspect launch-web --format "$1"; }
web() { launch status --json | $PYTHON -c '
import json, sys
(fleet,) = json.load(sys.stdin)["fleets"]
(web,) = (p for p in fleet["processes"] if p["name"] == "web")
print(web["state"], web["pid"], (web["measured_bytes"] or {}).get("ram", 0) > 0, fleet["runtime_pid"])'; }
again() { # wait for another container than $1, that answers
    for _ in $(seq 300); do
        now=$(box '{{.Id}}' 2> /dev/null) || now=$1
        [ "$now" = "$1" ] || ! curl -sf http://127.0.0.1:18082/health > /dev/null || return 0
        sleep 0.2
    done
    return 1
}
say() { echo "SAID $*"; }
cd /srv
say checked "$(launch check -f $FLEET > /dev/null 2>&1 && echo fits)"
launch up -f $FLEET --detach >&2
say asked "$(curl -s http://127.0.0.1:18082/health)"
say box "$(box '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Memory}} {{.EffectiveCaps}} {{.HostConfig.SecurityOpt}}')"
say ports "$(box '{{json .HostConfig.PortBindings}}')"
set -- $(web)
say state $1
id=$(box '{{.Id}}')
kill -9 $2
again $id
say client-died ok
id=$(box '{{.Id}}')
set -- $(web)
kill -9 $4
launch up -f $FLEET --detach >&2
say adopted "$([ "$(box '{{.Id}}')" = $id ] && echo same) $(curl -s http://127.0.0.1:18082/health)"
set -- $(web)
say measured $3
launch stop --all >&2
say left "$(podman ps --all --format '{{.Names}} {{.Status}}') end"
"""


@contextlib.contextmanager
def no_groups_left() -> Iterator[None]:
    """Podman leaves the parents of its control groups; those that it made are removed."""
    before = set(Path("/sys/fs/cgroup").glob("**/libpod_parent"))
    try:
        yield
    finally:
        for made in set(Path("/sys/fs/cgroup").glob("**/libpod_parent")) - before:
            for path in sorted((made, *(p for p in made.rglob("*") if p.is_dir())), reverse=True):
                path.rmdir()


def test_a_container_of_the_real_podman(
    tmp_path: Path, tiny_models: Callable[..., Path], llama_server: Path, no_orphans: None
) -> None:
    """As closed as it is written, replaced when its client dies, adopted by the next runtime, gone at the end."""
    (tmp_path / "launch.yaml").write_text(FLEET.format(model=tiny_models("llama"), binary=llama_server))
    (tmp_path / "commands.sh").write_text(COMMANDS)
    environment = {
        **{name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LAUNCH_TEST_MARK") if name in os.environ},
        "HOME": "/root",
        "CHECKOUT": str(HERE.parents[1]),
        "PYTHON": sys.executable,
        "FLEET": str(tmp_path / "launch.yaml"),
    }
    space = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", HERE / "podman_root.sh")
    with no_groups_left():
        words = [*space, tmp_path / "commands.sh", tmp_path / "podman"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=800, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    lines = (line.split(" ", 2) for line in done.stdout.splitlines() if line.startswith("SAID "))
    said: dict[str, Any] = {what: words for _, what, words in lines}
    published = json.loads(said.pop("ports"))
    assert published == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "18082"}]}
    memory = 64 * 2**20 + 16 * 2**20 + 256 * 2**20
    assert said == {
        "checked": "fits",
        "asked": "ok",
        "box": f"true {memory} [] [no-new-privileges]",
        "state": "ready",
        "client-died": "ok",
        "adopted": "same ok",
        "measured": "True",
        "left": " end",
    }
