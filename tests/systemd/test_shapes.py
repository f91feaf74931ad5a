"""Shapes of units beyond the plain server, each under a real systemd: hostile words, services, keys, rights."""

from __future__ import annotations

import pytest

from tests.systemd.conftest import FRONT, Fleet

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(300)]

HOSTILE = ('a b"c', "50%n $HOME ${X} $$", "line\nbreak\ttab", "naïve — 漢字 🦙", '{"k": ["\\\\", \'x\']}', "; # \\")


def test_hostile_words_arrive(fleet: Fleet) -> None:
    """Arguments, variables and a command's words reach the processes as written; the front's keys may be root's."""
    script = fleet.host.root / "srv/service.py"
    script.write_text(
        "import http.server, json, os, sys\n"
        "answer = json.dumps([sys.argv[2:], os.environ['X']]).encode()\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers(); self.wfile.write(answer)\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
    )
    written = [text.replace("${", "\\${") for text in HOSTILE]  # OmegaConf's escape
    keys = fleet.host.root / "etc/launch-keys"
    keys.write_text("a-long-enough-key-0123456789\n")
    keys.chmod(0o600)
    fleet.config["runtime"]["front"]["api_key_file"] = "/etc/launch-keys"
    fleet.server("alpha", extra_args=[w for text in written for w in ("--reverse-prompt", text)], env={"X": HOSTILE[0]})
    fleet.config["services"] = {
        "echo": {
            "command": ["/usr/bin/env", "python3", "/srv/service.py", "9009", *written],
            "port": 9009,
            "env": {"X": HOSTILE[2]},
        }
    }
    fleet.install()
    host = fleet.host
    pid = host.main_pid("launch-alpha.service")
    argv = (host.root / f"proc/{pid}/cmdline").read_bytes().decode().split("\0")
    assert [argv[i + 1] for i, word in enumerate(argv) if word == "--reverse-prompt"] == list(HOSTILE)
    assert f"X={HOSTILE[0]}" in (host.root / f"proc/{pid}/environ").read_bytes().decode().split("\0")
    assert fleet.chat("alpha") == 401
    given = host.run("curl", "-s", "-H", "Authorization: Bearer a-long-enough-key-0123456789", f"{FRONT}/v1/models")
    assert '"alpha"' in given.stdout
    assert fleet.ask("http://127.0.0.1:9009", "/health")[1] == [list(HOSTILE), HOSTILE[2]]


def test_what_the_runtime_may_touch(fleet: Fleet) -> None:
    """Its own units and no other: what is asked in its name for a stranger's unit, or another verb, is refused."""
    host = fleet.host
    fleet.server("alpha")
    fleet.install()
    host.run("systemd-run", "--unit=launch-stranger", "sleep", "600")
    runtime = ("runuser", "-u", "launch-dev-trio", "--", "systemctl", "--no-ask-password")
    assert host.run("cat", f"/proc/{host.main_pid('launch-dev-trio.service')}/loginuid", check=False)
    user = host.run("stat", "-c", "%U", f"/proc/{host.main_pid('launch-dev-trio.service')}").stdout.strip()
    assert user == "launch-dev-trio"
    assert host.run(*runtime, "restart", "launch-alpha.service").returncode == 0
    for words in (("stop", "launch-stranger.service"), ("disable", "launch-alpha.service"), ("daemon-reload",)):
        refused = host.run(*runtime, *words, check=False)
        assert refused.returncode != 0
        assert "authentication required" in refused.stderr or "Access denied" in refused.stderr, refused.stderr
    assert host.show("launch-stranger.service", "ActiveState")["ActiveState"] == "active"
