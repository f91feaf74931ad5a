"""What is exported for Prometheus, in a real Prometheus that scrapes a running fleet."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.cli.conftest import Cli
from tests.render.test_exports import promtool  # noqa: F401 - a fixture

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("exports")]
PATIENCE_S = 120


@pytest.fixture
def fleet(cli: Cli, tiny_models: Callable[..., Path]) -> Iterator[Path]:
    """Two tiny servers that take turns, up, with targets that nobody can meet; and its exports."""
    shutil.copy(tiny_models("llama"), cli.home / "llama.gguf")
    server = "{file: ~/llama.gguf, exclusive: turns, n_ctx_per_slot: 256, threads: 1, %s}"
    path = cli.home / "launch.yaml"
    path.write_text(
        f"runtime: {{front: {{port: {cli.front_port}}}}}\n"
        f"ports: {{one: {cli.server_port}, two: {cli.server_port}}}\n"
        f"servers:\n  one: {server % 'default: true, tokens_per_second_min: 1000000'}\n  two: {server % 'tier: warm'}\n"
        "orchestration: {router: one, workers: [one, two], swap_target_s: 0.001}\n"
        "deploy: {targets: [prometheus, alerts, grafana]}\n"
    )
    cli.run("up", "--wait")
    try:
        cli.run("render", "-o", "out")
        yield next((cli.home / "out").glob("*/exports"))
    finally:
        cli.run("down")


def asked(url: str, what: str, **parameters: str) -> Any:
    """`data` of one answer of Prometheus's API."""
    answer = httpx.get(f"{url}/api/v1/{what}", params=parameters, timeout=10)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def test_every_panel_has_a_series_and_the_alert_comes(
    cli: Cli,
    fleet: Path,
    promtool: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    """A turn of each server and a refusal; then all queries of the dashboard answer, and a missed target is pending."""
    program = shutil.which("prometheus") or str(Path(promtool).with_name("prometheus"))
    config = yaml.safe_load((fleet / "prometheus.yml").read_text())
    config |= {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(fleet / "alerts.yml")],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{cli.free_port()}"
    words = (f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}")
    words += (f"--web.listen-address={url.removeprefix('http://')}",)
    with (tmp_path / "log").open("w") as log, subprocess.Popen([program, *words], stdout=log, stderr=log) as running:
        try:
            panels = json.loads((fleet / "grafana.json").read_text())["panels"]
            missing = {panel["title"]: panel["targets"][0]["expr"] for panel in panels}
            alerts: set[tuple[str, str]] = set()
            deadline = time.monotonic() + PATIENCE_S
            while missing or len(alerts) < 2:
                assert time.monotonic() < deadline, (missing, alerts, (tmp_path / "log").read_text()[-2000:])
                for name in ("one", "two", "none"):
                    body = {"model": name, "prompt": "a", "max_tokens": 8, "ignore_eos": True}
                    httpx.post(f"{cli.front}/v1/completions", json=body, timeout=60)
                try:
                    missing = {t: e for t, e in missing.items() if not asked(url, "query", query=e)["result"]}
                    found = asked(url, "alerts")["alerts"]
                except httpx.TransportError:  # it has only begun
                    continue
                alerts = {
                    (a["labels"]["alertname"], a["labels"]["target"])
                    for a in found
                    if a["labels"]["alertname"] == "LaunchTargetMissed"
                }
            assert {target for _, target in alerts} == {"swap_seconds", "tokens_per_second"}
        finally:
            running.terminate()
    missed = {
        e["details"]["target"] for f in cli.json("events")["fleets"] for e in f["events"] if e["kind"] == "target"
    }
    assert missed == {"swap_seconds", "tokens_per_second"}
    shown = cli.run("status", code=None).stdout
    assert "target swap seconds: missed" in shown
    assert "target tokens per second one: missed" in shown
