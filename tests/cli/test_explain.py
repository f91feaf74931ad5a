"""`launch explain`: one true page for every code that the source can emit, and docs/checks.md made from the same."""

from __future__ import annotations

import ast
import functools
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from launcher import cli
from launcher.cli.explain import STAGES, Explanation, checks_page, explanations, find, unchecked
from launcher.compiler import compile_fleet, render
from launcher.config.schema import Shape, declared_keys, inner, shape_of
from launcher.errors import ConfigError, Finding, LaunchError
from launcher.ir.config import FleetConfig
from launcher.supervise.diagnosis import _SIGNATURES, _Signature

ROOT = Path(__file__).parents[2]
PREFIXES = "|".join(prefix for stage in STAGES for prefix in stage.prefixes)
CODE = re.compile(rf"(?:{PREFIXES})/[a-z0-9]+(?:-[a-z0-9]+)*")
BEGUN = re.compile(rf"(?:{PREFIXES})/[a-z0-9-]*")
LINE = re.compile(r"^(?:\S.*: )?((?:error|warning|note)\[.*)$")
PAGES = {page.code: page for page in explanations()}
BY_VARIABLE = {
    *("catalog/unknown-mix", "config/dangling", "engine/unknown-flag", "install/no-systemd", "plan/node-over-budget"),
    *("plan/proof-failed", "plan/proof-mismatch"),
}
"""Codes whose severity is decided before the call that names them."""


pytestmark = pytest.mark.xdist_group("explain")  # one worker parses the sources


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Every module of the package, parsed, by path."""
    return {str(path): ast.parse(path.read_bytes()) for path in sorted((ROOT / "launcher").rglob("*.py"))}


@functools.cache
def nodes(tree: ast.AST) -> tuple[ast.AST, ...]:
    """Everything in a module: walked once, looked at by several."""
    return tuple(ast.walk(tree))


def strings(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The string constants among `nodes`."""
    return (n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))


def first_arguments(tree: ast.Module, function: str) -> set[str]:
    """What calls of `function` in its own module give as first argument."""
    calls = [n for n in nodes(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    return set(strings([c.args[0] for c in calls if c.func.id == function and c.args]))  # type: ignore[attr-defined] # a Name


def composed_codes(tree: ast.Module) -> set[str]:
    """Codes made by f-strings: the constant beginning, with what the function around it is called with."""
    codes = set()
    for function in (n for n in nodes(tree) if isinstance(n, ast.FunctionDef)):
        for text in (n for n in ast.walk(function) if isinstance(n, ast.JoinedStr)):
            begun = next(strings(text.values[:1]), "")  # type: ignore[arg-type] # expressions are nodes
            if BEGUN.fullmatch(begun):
                arguments = first_arguments(tree, function.name)
                assert arguments, f"which codes does {ast.unparse(text)} make?"
                codes |= {begun + argument for argument in arguments}
    return codes


def given_codes(tree: ast.Module) -> set[str]:
    """What calls give as `code=`, or `fault` first, whatever it begins with: no new stage's findings slip by."""
    calls = [n for n in nodes(tree) if isinstance(n, ast.Call)]
    keywords = [k.value for n in calls for k in n.keywords if k.arg == "code"]
    return {text for text in strings([*keywords, *(n.args[0] for n in calls if is_fault(n))]) if "/" in text}


def is_fault(call: ast.Call) -> bool:
    """Whether a call makes a finding by `fault` or `ConfigError.of`, whose severity is error where none is given."""
    return bool(call.args) and bool(re.fullmatch(r"fault|\w+Error\.of", ast.unparse(call.func)))


def unsaid(call: ast.Call) -> set[str]:
    """The severity of a `fault` that says none."""
    return {"error"} if is_fault(call) and not any(k.arg == "severity" for k in call.keywords) else set()


@functools.cache
def codes_in_source() -> frozenset[str]:
    """Every code that the package can emit."""
    found: set[str] = set()
    for tree in trees().values():
        found |= {text for text in strings(nodes(tree)) if CODE.fullmatch(text)}
        found |= given_codes(tree) | composed_codes(tree)
    return frozenset(found)


def severities_in_source() -> dict[str, set[str]]:
    """Code → severities that stand with it in one call."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for tree in trees().values():
        for call in (n for n in nodes(tree) if isinstance(n, ast.Call)):
            arguments = [*call.args, *(k.value for k in call.keywords)]
            direct = [n for a in arguments for n in ([a.body, a.orelse] if isinstance(a, ast.IfExp) else [a])]
            words = set(strings(list(direct)))
            for code in words & codes_in_source():
                found[code] |= (words | unsaid(call)) & {"error", "warning", "note"}
    return found


def test_every_code_has_a_page() -> None:
    """A new finding is explained in the same change."""
    assert sorted(codes_in_source() - PAGES.keys()) == []


def test_every_page_has_a_code() -> None:
    """A page of a finding that is gone goes too."""
    assert sorted(PAGES.keys() - codes_in_source()) == []


def test_pages_state_the_severities_of_the_source() -> None:
    """Where the source says severity and code in one call, the page lists that severity, and no other is invented."""
    found = severities_in_source()
    lacking = {code: said for code, said in found.items() if not said <= set(PAGES[code].severity)}
    surplus = {code: said for code, said in found.items() if said and len(said) < len(PAGES[code].severity)}
    assert lacking == {}
    assert set(surplus) <= BY_VARIABLE


@pytest.mark.parametrize("code", PAGES)
def test_page_is_whole(code: str) -> None:
    """Short texts that end in full stops, and an example that shows the finding with a severity it can have."""
    page = PAGES[code]
    for text in (page.meaning, page.remedy):
        assert text.endswith(".")
        assert "\n" not in text
        assert len(text) < 700
    shown = [m[1] for line in page.example.splitlines() if (m := LINE.match(line))]
    assert any(line.startswith(tuple(f"{severity}[{code}]: " for severity in page.severity)) for line in shown)
    assert len(page.first_sentence) < 230


def test_exit_codes_are_those_of_the_error_classes() -> None:
    """A code that is never an error has no exit code; the others have their stage's, or the one written with them."""
    exits = {page.code: page.exit_code for page in explanations()}
    assert exits["plan/ram-over-budget"] == 4
    assert exits["engine/unknown-flag"] == 5
    assert exits["supervise/already-running"] == 6
    assert exits["route/public-without-key"] == 2
    assert exits["plan/kv-reserve"] is None


# --- examples -----------------------------------------------------------------------------------------------


def example_commands() -> list[tuple[str, list[str]]]:
    """(code, command and overrides) of each example that a compile reproduces: those without files under /models."""
    found = []
    for page in PAGES.values():
        words = shlex.split(page.example.splitlines()[0]) if page.example.startswith("$ ") else []
        if (
            "--prove" not in words
            and words[1:3] in (["launch", "plan"], ["launch", "render"])
            and "/models/" not in page.example
        ):
            found.append((page.code, words[2:]))
    return found


def without_numbers(text: str) -> str:
    """`text` with every number as `#`: sizes follow the packaged config, which may change."""
    return re.sub(r"\d[\d,.]*", "#", text)


def findings_of(command: str, *overrides: str) -> tuple[Finding, ...]:
    """All findings of `launch plan` or `launch render`."""
    try:
        compilation = compile_fleet(overrides)
        return render(compilation).findings if command == "render" else compilation.findings
    except LaunchError as error:
        return error.findings


@pytest.mark.parametrize(("code", "words"), example_commands())
def test_example_is_true(code: str, words: list[str]) -> None:
    """The command of an example gives its finding, word for word."""
    said = {without_numbers(f"{f.severity}[{f.code}]: {f.message}") for f in findings_of(*words)}
    shown = {without_numbers(m[1]) for line in PAGES[code].example.splitlines() if (m := LINE.match(line))}
    assert shown <= said


def test_most_examples_of_a_compile_are_run() -> None:
    """Examples do not slip out of the test above unnoticed."""
    assert len(example_commands()) > 60


SAID_BEFORE_THE_START = {"supervise/port-busy", "supervise/model-missing"}
"""Codes whose example is that of the check before the start, which has words of its own."""


@pytest.mark.parametrize(
    "signature", [s for s in _SIGNATURES if s.code not in SAID_BEFORE_THE_START], ids=lambda s: s.code
)
def test_examples_of_failed_servers_are_true(signature: _Signature) -> None:
    """Where a server's log says why it failed, the example has the words of that diagnosis."""
    cause = re.sub(r"\\{\d\\}", ".+", re.escape(signature.cause))
    assert re.search(rf"error\[{signature.code}\]: \w+: {cause}$", PAGES[signature.code].example, re.MULTILINE)


def mentioned_keys() -> list[str]:
    """Every dotted config key that a page assigns, as `key=`."""
    fields = "|".join(FleetConfig.__struct_fields__)
    texts = [f"{p.meaning} {p.remedy}" for p in PAGES.values()]
    return sorted({m[1] for text in texts for m in re.finditer(rf"[`+~ ]((?:{fields})(?:\.\w+)+)(?==|`)", text)})


@pytest.mark.parametrize("key", mentioned_keys())
def test_overrides_in_pages_exist(key: str) -> None:
    """What a page tells to write is a key of the config."""
    shape: Shape | None = shape_of(FleetConfig)
    for part in key.split("."):
        assert shape is not None
        assert part in (declared_keys(shape) or (part,))
        shape = inner(shape, part)


# --- the command ----------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `launch explain WORDS`."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["explain", *words])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_a_code_shows_its_page(capsys: pytest.CaptureFixture[str]) -> None:
    """Meaning, example and remedy, in lines that fit a terminal but for the example."""
    code, out, err = run(capsys, "plan/ram-over-budget")
    assert (code, err) == (0, "")
    assert out.startswith("plan/ram-over-budget  error, exit code 4\n")
    assert "$ launch plan hardware=epyc" in out
    assert "What to do" in out


@pytest.mark.parametrize("written", ["ram-over-budget", "[plan/ram-over-budget]", " plan/ram-over-budget "])
def test_a_part_that_is_enough(written: str) -> None:
    """The part behind the slash is enough where one code ends in it; brackets of a finding may stay."""
    assert find(written, explanations()).code == "plan/ram-over-budget"


def test_a_part_that_is_not_enough(capsys: pytest.CaptureFixture[str]) -> None:
    """A last part that several codes share is refused, with all of them."""
    code, _, err = run(capsys, "unknown-architecture")
    assert code == 2
    assert "catalog/unknown-architecture, engine/unknown-architecture, supervise/unknown-architecture" in err


@pytest.mark.parametrize(
    ("written", "note"),
    [
        ("plan/ram-over-buget", "did you mean plan/ram-over-budget?"),
        ("ram-over-buget", "did you mean plan/ram-over-budget?"),
        ("host/ram-over-budget", "did you mean plan/ram-over-budget?"),
        ("xyzzy", "`launch explain` lists them all"),
        ("", "`launch explain` lists them all"),
    ],
)
def test_unknown_code(written: str, note: str) -> None:
    """An unknown code is a config error with the nearest one."""
    with pytest.raises(ConfigError) as refused:
        find(written, explanations())
    (finding,) = refused.value.findings
    assert finding.code == "config/unknown-code"
    assert finding.notes == (note,)


def test_unknown_code_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    """The finding is printed on stderr, and nothing on stdout."""
    code, out, err = run(capsys, "plan/ram-over-buget")
    assert (code, out) == (2, "")
    assert err.startswith("error[config/unknown-code]: there is no finding plan/ram-over-buget\n")


def test_all_codes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a code: every one of them, under its stage, in lines of at most 100 characters."""
    code, out, _ = run(capsys)
    assert code == 0
    lines = out.splitlines()
    assert {line.strip() for line in lines} >= PAGES.keys()
    assert {line.partition(",")[0] for line in lines} >= {stage.name for stage in STAGES}
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(("words", "expected"), [((), list(PAGES)), (("kv-reserve",), ["plan/kv-reserve"])])
def test_json(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], expected: list[str]) -> None:
    """All pages or one, as `launch.explain/v1`."""
    code, out, _ = run(capsys, *words, "--json")
    document = json.loads(out)
    assert (code, document["schema"]) == (0, "launch.explain/v1")
    assert [page["code"] for page in document["codes"]] == expected
    assert set(document["codes"][0]) == set(Explanation.__struct_fields__)


def test_json_of_an_unknown_code(capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json` an error is JSON too."""
    code, out, _ = run(capsys, "nothing", "--json")
    assert code == 2
    assert json.loads(out)["findings"][0]["code"] == "config/unknown-code"


# --- docs/checks.md -------------------------------------------------------------------------------------------


def test_the_page_is_up_to_date() -> None:
    """`python -m launcher.cli.explain > docs/checks.md` was run."""
    assert (ROOT / "docs/checks.md").read_text(encoding="utf-8") == checks_page()


def test_the_page_has_everything() -> None:
    """Every code has its heading, and every gap its row."""
    page = checks_page()
    assert [line[5:-1] for line in page.splitlines() if line.startswith("### ")] == list(PAGES)
    assert all(f"| {gap.row} |" in page for gap in unchecked())


def test_codes_named_in_texts_exist() -> None:
    """Pages and gaps refer to codes that are there."""
    named = set(re.findall(rf"`({CODE.pattern})`", checks_page()))
    assert sorted(named - PAGES.keys()) == []
