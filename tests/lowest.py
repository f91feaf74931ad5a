"""`python -m tests.lowest`: the lowest version of each run-time dependency that is allowed, as constraints for pip."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest(text: str) -> str:
    """`httpx==0.27` from `httpx>=0.27`. Raises ValueError for a dependency without a lower bound."""
    wanted = Requirement(text)
    floor = next((s.version for s in wanted.specifier if s.operator == ">="), None)
    if floor is None:
        raise ValueError(f"{text} has no lower bound")
    return f"{wanted.name}=={floor}"


def main() -> None:
    """Print them."""
    for dependency in tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]:
        print(lowest(dependency))  # noqa: T201 - this is what it does


if __name__ == "__main__":
    main()
