"""A change shows as the files that really differ."""

from __future__ import annotations

from launcher.compiler import compile_fleet, render


def test_one_server_that_changes() -> None:
    """Its unit, its command, the manifest: no other file of the deployment is another."""

    def files(*overrides: str) -> dict[str, str]:
        compiled = compile_fleet(["hardware=epyc", "profile=hot_only", *overrides])
        return {file.path: file.text for file in render(compiled).deployment.files}

    before, after = files(), files("servers.worker_explore.cache_ram_mib=1000")
    assert before.keys() == after.keys()
    differing = {path for path in before if before[path] != after[path]}
    assert differing == {"fleet.json", "commands/worker_explore.sh", "systemd/launch-worker_explore.service"}
