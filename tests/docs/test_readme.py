"""What the README shows is what comes out."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.cli.conftest import LAUNCH

ROOT = Path(__file__).parents[2]


def test_the_plan_in_the_readme_is_the_real_one() -> None:
    """The block below the comment that names the command is its output, run in the checkout."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"<!-- (launch plan [^>]*) -->\n```\n(.*?)```", text, re.DOTALL)
    assert [command for command, _ in blocks] == ["launch plan hardware=epyc profile=hot_only"]
    for command, shown in blocks:
        env = os.environ | {"NO_COLOR": "1", "PYTHONUTF8": "1"}
        done = subprocess.run(
            [LAUNCH, *command.split()[1:]], cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )
        assert shown == done.stdout


def test_every_linked_file_exists() -> None:
    """Relative links of the README and CONTRIBUTING lead somewhere."""
    for name in ("README.md", "CONTRIBUTING.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / name).read_text())
        assert [link for link in links if not (ROOT / link).exists()] == []
