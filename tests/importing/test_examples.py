"""Six llama-swap configurations, each to a plan without errors; docs/import.md says what becomes of them.

`everything.yaml` has every key of llama-swap's public config.example.yaml. Write the table anew with
`python -m tests.importing.test_examples FOLDER`, FOLDER being one with the models of `MODELS`.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.compiler import compile_fleet
from launcher.importing import Imported, imported_text, translate
from tests.importing.test_flags import FLAGS

EXAMPLES = sorted(Path(__file__).with_name("examples").iterdir())
DOCS = Path(__file__).parents[2] / "docs/import.md"
MODELS = {"llama": "llama", "qwen2": "qwen2", "bert": "bert", "see": "qwen2vl", "mmproj-see": "qwen2vl-projector"}


def imported(example: Path, models: str) -> Imported:
    """The translation, with the models where they are here."""
    text = example.read_text(encoding="utf-8").replace("/models", models)
    return translate(example.name, text, FLAGS, {"LLAMA_HOME": "/opt/llama", "MODELS": models})


def row(example: Path, folder: Path) -> str:
    """The line of the table about one configuration. Raises LaunchError where its plan has errors."""
    found = imported(example, str(folder))
    target = folder / f"{example.stem}.yaml"
    target.write_text(imported_text(found, example.name), encoding="utf-8")
    compiled = compile_fleet(["hardware=dev"], config_dirs=[target])
    compiled.require()
    lost = [finding.message.replace(" is not translated", "").rstrip(":") for finding in found.findings]
    said = Counter(f.code for f in compiled.findings if f.severity != "note")
    codes = ", ".join(f"`{code}`" + (f" × {n}" if n > 1 else "") for code, n in said.items())
    cells = (example.name, ", ".join(found.servers), "; ".join(lost) or "nothing", codes or "nothing")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_models: Callable[..., Path]) -> Path:
    """Tiny models by the names that the configurations have."""
    made = tmp_path_factory.mktemp("models")
    for name, arch in MODELS.items():
        shutil.copy(tiny_models(arch), made / f"{name}.gguf")
    return made


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_planned_and_the_document_says_so(example: Path, folder: Path) -> None:
    """Servers, losses and what the plan finds, as docs/import.md has them."""
    assert row(example, folder) in DOCS.read_text(encoding="utf-8").splitlines()


def test_there_are_six() -> None:
    """And the document has no other."""
    table = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if ".yaml | " in line]
    assert [line.split()[1] for line in table] == [example.name for example in EXAMPLES]
    assert len(EXAMPLES) == 6


if __name__ == "__main__":
    sys.stdout.writelines(f"{row(example, Path(sys.argv[1]).absolute())}\n" for example in EXAMPLES)
