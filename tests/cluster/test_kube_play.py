"""A fleet's rendered objects, run by the real podman as pods: those that it knows, and the front answers for each.

What podman has no words for is ours to do here: a Service is an alias on podman's network, and a probe is run by hand
(`podman healthcheck run`), since there is no systemd to do it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.supervise.test_real_podman import HERE as PODMAN
from tests.supervise.test_real_podman import no_groups_left

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

FLEET = """
servers:
  alpha: {{file: {models}/alpha.gguf, port: 18081, n_ctx: 512, slots: 1, threads: 1, cache_ram_mib: 0}}
  beta: {{file: {models}/beta.gguf, port: 18082, n_ctx: 512, slots: 2, threads: 1, cache_ram_mib: 0}}
engines: {{default: {binary}}}
runtime: {{front: {{api_key_file: /etc/launch/api_keys}}}}
"""
COMMANDS = """
cd "$WORK"
say() { echo "SAID $*"; }
launch() { (cd "$CHECKOUT" && "$PYTHON" -c 'from launcher.cli import main; main()' "$@"); }
image=localhost/launch:test
(cd "$CHECKOUT" && "$PYTHON" -m tests.cluster.image "$BINARY") | podman import --quiet - $image > /dev/null
podman network create launch > /dev/null
render() {
    rm -rf out
    launch render -f "$FLEET" deploy=kubernetes deploy.output_dir="$PWD/out" \\
        +deploy.kubernetes.images.default.image=$image +deploy.kubernetes.images.default.program="$BINARY" \\
        +deploy.kubernetes.front_image=$image "$@" >&2
    cd out/*/kubernetes
}
play() { # a Service's name is an alias of the pod
    podman kube play --network "launch:alias=$1" "$2.yaml" > play.log 2>&1 || { cat play.log >&2; exit 4; }
}
at() { podman pod inspect "$1-pod" --format '{{.InfraContainerID}}' |
    xargs podman inspect --format '{{(index .NetworkSettings.Networks "launch").IPAddress}}'; }
reach() { # as a client of a Service: name, port, path
    name=$1 port=$2 path=$3 && shift 3
    curl -s --max-time 60 --resolve "$name:$port:$(at "$name")" "$@" "http://$name:$port$path"
}
ask() {
    path=$1 && shift
    reach launch-front 8000 "$path" -H 'Authorization: Bearer open-sesame-1' "$@"
}
wait_for() { # and then the probe once, as podman runs it: by curl in the container
    for _ in $(seq 600); do
        if reach "$1" "$3" /health -f -o /dev/null; then
            podman healthcheck run "$1-pod-$2" >&2
            return 0
        fi
        sleep 0.2
    done
    podman logs "$1-pod-$2" 2>&1 | tail -20 >&2
    exit 5
}
chat() {
    printf '{"model": "%s", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4}' "$1" > question
    ask /v1/chat/completions -H 'Content-Type: application/json' -o answer -d @question \\
        -w '%{http_code} %header{x-launch-server}'
    "$PYTHON" -c 'import json; found = json.load(open("answer")); print("", found["object"], found["model"])'
}
up() {
    play launch-alpha server-alpha
    play launch-beta server-beta
    play launch-front front
    wait_for launch-alpha llama-server "$ALPHA"
    wait_for launch-beta llama-server "$BETA"
    wait_for launch-front front 8000
}
down() { for file in front server-alpha server-beta; do podman kube down $file.yaml > /dev/null; done; }

cat > secret.yaml << END
apiVersion: v1
kind: Secret
metadata: {name: launch-keys}
stringData: {api_keys: open-sesame-1}
END
podman kube play secret.yaml > /dev/null
(
    render
    up
    say alpha "$(chat alpha)"
    say beta "$(chat beta)"
    say models "$(ask /v1/models | "$PYTHON" -c 'import json, sys
print(*sorted(m["id"] for m in json.load(sys.stdin)["data"]))')"
    say stranger "$(curl -s -o /dev/null -w '%{http_code}' --resolve "launch-front:8000:$(at launch-front)" \\
        http://launch-front:8000/v1/models)"
    say closed "$(podman inspect launch-alpha-pod-llama-server \\
        --format '{{.HostConfig.ReadonlyRootfs}} {{.EffectiveCaps}} {{.Config.User}} {{.HostConfig.Memory}}')"
    say limit "$("$PYTHON" -c 'import sys, yaml
for found in yaml.safe_load_all(open("server-alpha.yaml")):
    if found["kind"] == "Deployment":
        print(found["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"])')"
    kill -9 "$(podman inspect launch-alpha-pod-llama-server --format '{{.State.Pid}}')"
    wait_for launch-alpha llama-server "$ALPHA"
    say again "$(chat alpha)"
    down
)
# the models by a claim instead of the node's directories
cat > claim.yaml << END
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: models
  annotations:
    volume.podman.io/device: $MODELS
    volume.podman.io/type: none
    volume.podman.io/mount-options: bind
spec: {accessModes: [ReadOnlyMany]}
END
podman kube play claim.yaml > /dev/null
(
    render +deploy.kubernetes.models_claim=models +deploy.kubernetes.models_mount="$MODELS"
    up
    say claimed "$(chat beta)"
    down
)
say left "$(podman ps --all --format '{{.Names}}') end"
"""


def test_the_objects_run_as_pods(
    tmp_path: Path, tiny_models: Callable[..., Path], llama_server: Path, no_orphans: None
) -> None:
    """Two servers and a front, each as closed as it is written: chat answers for both, models by path and by claim."""
    models = tmp_path / "models"
    models.mkdir(mode=0o755)
    for number, name in enumerate(("alpha", "beta")):
        shutil.copyfile(tiny_models("llama", seed=number), models / f"{name}.gguf")
    (tmp_path / "launch.yaml").write_text(FLEET.format(models=models, binary=llama_server))
    (tmp_path / "commands.sh").write_text(COMMANDS)
    environment = {
        **{name: os.environ[name] for name in ("PATH", "LAUNCH_TEST_MARK") if name in os.environ},
        "HOME": "/root",
        "CHECKOUT": str(PODMAN.parents[1]),
        "PYTHON": sys.executable,
        "FLEET": str(tmp_path / "launch.yaml"),
        "MODELS": str(models),
        "BINARY": str(llama_server),
        "WORK": str(tmp_path),
        "SUITE": "trixie",
        "ALPHA": "18081",
        "BETA": "18082",
        "DISABLE_HC_SYSTEMD": "true",
    }
    space = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", PODMAN / "podman_root.sh")
    with no_groups_left():
        words = [*space, tmp_path / "commands.sh", tmp_path / "podman"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=1100, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    lines = (line.split(" ", 2) for line in done.stdout.splitlines() if line.startswith("SAID "))
    said = {what: words for _, what, words in lines}
    limit = said.pop("limit")
    assert said == {
        "alpha": "200 alpha chat.completion alpha",
        "beta": "200 beta chat.completion beta",
        "models": "alpha beta",
        "stranger": "401",
        "closed": f"true [] 10001:10001 {limit}",
        "again": "200 alpha chat.completion alpha",
        "claimed": "200 beta chat.completion beta",
        "left": " end",
    }
