"""Whatever stands in an argument or a variable arrives: as unit and as script, started by systemd and by sh."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from launcher.engine import recorded
from launcher.ir.config import DeployConfig
from launcher.render.fleet import render_fleet
from tests.render.conftest import templates
from tests.render.plan_factory import fleet_plan, server_plan
from tests.systemd.booted import BootedHost

__all__ = ["templates"]

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(600)]

SHOW = "/srv/show 100%/$HOME"
"""The program instead of llama-server: prints a variable and its arguments, each ended by NUL."""

AS_ONESHOT = """[Service]
Type=oneshot
Restart=no
StandardOutput=truncate:/run/shown/%n
"""

PIECES = (
    '"', "'", "\\", "%", "%n", "%%", "$", "$$", "$HOME", "${X}", "$(id)", "`id`", "\n", "\r\n", "\t", "\x01", "\x1b[0m",
    "\x7f", " ", "  ", ";", "#", "&", "|", "*", "?", "~", "!", "{", "}", "=", "-", "--", "\\x41", "\\n", "\\\n", "é",
    "漢字", "🦙", "\u2028", "\ufeff", '{"k": ["v", null]}', "a", "b",
)  # fmt: skip
WORDS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
)
SERVERS = st.lists(st.tuples(st.lists(WORDS, max_size=4), WORDS), min_size=1, max_size=12)


@settings(
    max_examples=8,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(servers=SERVERS)
def test_any_words_arrive(host: BootedHost, templates: dict[str, str], servers: list[tuple[list[str], str]]) -> None:
    """Every argument and variable of up to 12 servers at a time, through both."""
    plan = fleet_plan(
        *(
            server_plan(
                f"s{i}",
                port=9000 + i,
                model="".join(words),
                env={"X": value},
                extra_args=tuple(w for word in words for w in ("--reverse-prompt", word)),
            )
            for i, (words, value) in enumerate(servers)
        ),
        deploy=DeployConfig(hardening=False),
    )
    rendered = render_fleet(plan, {"default": (SHOW, recorded("b10434"))}, templates, "0.1.0")
    _prepare(host.root)
    for file in rendered.deployment.files:
        folder, _, name = file.path.rpartition("/")
        where = {"systemd": "etc/systemd/system", "commands": "srv/commands"}.get(folder)
        if where:
            path = host.root / where / name
            path.write_text(file.text, newline="")
            path.chmod(0o755 if file.executable else 0o644)
    units = [f"launch-s{i}.service" for i in range(len(servers))]
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", *units)
    host.run("sh", "-c", "cd /srv/commands && for f in s*.sh; do sh ./$f > /run/shown/$f; done")
    for i, (_, value) in enumerate(servers):
        meant = [value, *rendered.commands[f"s{i}"].words[1:]]
        for name in (units[i], f"s{i}.sh"):
            shown = (host.root / "run/shown" / name).read_bytes().removesuffix(b"\0").split(b"\0")
            assert [word.decode() for word in shown] == meant, name


def _prepare(root: Path) -> None:
    """The program, and a drop-in for every server: it ends at once, and what it prints is kept."""
    program = root / SHOW[1:]
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text('#!/bin/sh\nprintf \'%s\\0\' "$X" "$@"\n')
    program.chmod(0o755)
    for folder in ("etc/systemd/system/launch-.service.d", "run/shown", "srv/commands"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for script in (root / "srv/commands").glob("*.sh"):
        script.unlink()
    (root / "etc/systemd/system/launch-.service.d/shown.conf").write_text(AS_ONESHOT)
