"""`launch explain`: every finding's meaning, example and remedy, from `explanations.toml`.

`python -m launcher.cli.explain > docs/checks.md` writes the same as a page.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from launcher.cli.terminal import Terminal, terminals
from launcher.errors import ConfigError
from launcher.ir.answers import ExplainedCode

DATA = Path(__file__).with_name("explanations.toml")
_WIDTH = 100
_STYLE = {"error": "red", "warning": "yellow", "note": "cyan"}
_SENTENCE = re.compile(r".+?\.(?=\s|$)", re.DOTALL)


class Stage(NamedTuple):
    """Findings of one stage: the prefixes of their codes, the exit code of its errors, and when they appear."""

    name: str
    prefixes: tuple[str, ...]
    exit_code: int
    when: str


STAGES = (
    Stage("Author", ("author",), 2, "`init`, `add`, `remove`, `import`: writing a fleet file"),
    Stage("Config", ("config",), 2, "reading config files and overrides"),
    Stage("Catalog", ("catalog",), 3, "reading model files, or what is declared of them"),
    Stage("Plan", ("plan", "cpu"), 4, "deciding whether the fleet fits and makes sense"),
    Stage("Engine", ("engine", "render"), 5, "writing command lines and units for a build"),
    Stage("Host", ("host",), 6, "`check` and `up`: holding the plan against this host"),
    Stage("Install", ("install",), 6, "`install` and `uninstall`: putting units in place"),
    Stage("Manifest", ("manifest",), 2, "reading a rendered deployment"),
    Stage("Supervise", ("supervise",), 7, "starting and watching servers"),
    Stage("Checkpoint", ("checkpoint",), 2, "keeping a fleet as it runs, and restoring it"),
    Stage("Sweep", ("sweep",), 2, "`sweep`: measuring settings of servers"),
    Stage("Route", ("route",), 6, "opening the one port that clients talk to"),
    Stage("Orchestrate", ("orchestrate",), 6, "opening the memory of projects"),
)


class Explanation(ExplainedCode, frozen=True, kw_only=True):
    """One code's page. `severity` lists what it can be."""

    @property
    def first_sentence(self) -> str:
        """The first sentence of the meaning, for lists."""
        match = _SENTENCE.match(self.meaning)
        return match[0] if match else self.meaning

    @property
    def weight(self) -> str:
        """Severities and exit code, as `error or note, exit code 4`."""
        code = "" if self.exit_code is None else f", exit code {self.exit_code}"
        return " or ".join(self.severity) + code


class Unchecked(msgspec.Struct, frozen=True, kw_only=True):
    """An accident that no code, or no code yet, catches before it happens, and why."""

    part: str
    row: str
    why: str


def explanations() -> tuple[Explanation, ...]:
    """Every page, in the order of the stages and of the file."""
    pages = [_page(code, entry) for code, entry in _data().items() if "/" in code]
    order = {stage.name: i for i, stage in enumerate(STAGES)}
    return tuple(sorted(pages, key=lambda page: order[page.stage]))


def unchecked() -> tuple[Unchecked, ...]:
    """Accidents that are not checked, in the order of the file."""
    return msgspec.convert(tuple(_data()["unchecked"]), tuple[Unchecked, ...])


def find(code: str, pages: Iterable[Explanation]) -> Explanation:
    """The page of `code`; the part after its slash is enough if only one code has it. Raises ConfigError."""
    by_code = {page.code: page for page in pages}
    wanted = code.strip().strip("[]")
    if wanted in by_code:
        return by_code[wanted]
    same = [c for c in by_code if c.partition("/")[2] == wanted]
    if len(same) == 1:
        return by_code[same[0]]
    if same:
        message, note = f"{code} could be any of {len(same)} findings", f"one of {', '.join(same)}"
    else:
        near = _near(wanted, list(by_code))
        message, note = (
            f"there is no finding {code}",
            f"did you mean {near}?" if near else "`launch explain` lists them all",
        )
    raise ConfigError.of("config/unknown-code", message, note)


def show_explanation(code: str | None, *, as_json: bool) -> int:
    """Run `launch explain`: show one page, all codes with their first sentence, or a config key.

    Raises ConfigError for a word that is none of these.
    """
    out, _ = terminals()
    if code is not None and "/" not in code and not as_json:
        from launcher.cli.fields import find_keys, show_keys

        if found := find_keys(code.strip("[]")):
            show_keys(out, found)
            return 0
    pages = explanations()
    chosen = pages if code is None else (find(code, pages),)
    if as_json:
        out.json({"schema": "launch.explain/v1", "codes": chosen})
    elif code is None:
        _show_all(out, pages)
    else:
        _show_one(out, chosen[0])
    return 0


def _data() -> dict[str, Any]:
    import tomllib

    return tomllib.loads(DATA.read_text(encoding="utf-8"))


def _page(code: str, entry: dict[str, Any]) -> Explanation:
    stage = next(s for s in STAGES if code.partition("/")[0] in s.prefixes)
    texts = {name: entry[name].strip("\n") for name in ("meaning", "example", "remedy")}
    exit_code = entry.get("exit_code", stage.exit_code) if "error" in entry["severity"] else None
    return msgspec.convert(
        {"code": code, "stage": stage.name, "severity": entry["severity"], "exit_code": exit_code, **texts}, Explanation
    )


def _near(wanted: str, codes: list[str]) -> str | None:
    """The code most like `wanted`, which may lack its first part; None if none is near."""
    import difflib

    bare = {c.partition("/")[2]: c for c in codes}
    found = difflib.get_close_matches(wanted, codes if "/" in wanted else bare, n=1)
    if not found and "/" in wanted:
        found = difflib.get_close_matches(wanted.partition("/")[2], bare, n=1)
    return bare.get(found[0], found[0]) if found else None


def _show_one(out: Terminal, page: Explanation) -> None:
    out.line(f"{out.style(page.code, _STYLE[page.severity[0]], 'bold')}  {out.style(page.weight, 'dim')}")
    out.line()
    _wrapped(out, page.meaning)
    out.line(f"\n{out.style('Example', 'bold')}")
    for line in page.example.splitlines():
        out.line(f"  {line}")
    out.line(f"\n{out.style('What to do', 'bold')}")
    _wrapped(out, page.remedy, "  ")


def _show_all(out: Terminal, pages: Sequence[Explanation]) -> None:
    for stage in STAGES:
        out.line(f"{out.style(stage.name, 'bold')}, {stage.when}")
        for page in (page for page in pages if page.stage == stage.name):
            out.line(f"  {out.style(page.code, _STYLE[page.severity[0]])}")
            _wrapped(out, page.first_sentence, "      ")
        out.line()
    out.line("`launch explain CODE` says more: an example, and what to do")


def _wrapped(out: Terminal, text: str, indent: str = "") -> None:
    width = min(out.width, _WIDTH)
    for line in textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ):
        out.line(line)


_PREFACE = """\
# What launch checks

<!-- Made by `python -m launcher.cli.explain > docs/checks.md` from launcher/cli/explanations.toml. -->

A *finding* is one thing that is wrong with an input, or worth knowing about it: a stable code, where it was written,
what it is in numbers, and overrides that remove it. All findings of a stage are reported together. `launch explain
CODE` prints the page of one of them, `launch explain` lists them, `--json` gives both to programs.

```
conf/server/frontdoor.yaml:6:10: error[plan/ram-over-budget]: ram has a budget of 544.8 GiB but 599.1 GiB is planned
  = a note: more about it
  = fix: servers.architect_general.n_ctx=8192 saves 2.0 GiB
```

`<command line>:3` is the third override. Each `fix:` is an override to append to the command; `…` in it is for
you to fill in.

An **error** stops: nothing is written or started. A **warning** is probably a mistake, and a **note** is worth knowing.
Warnings and notes, also those about this host, can be accepted where they are written, for one server or for the whole
fleet, with a reason; without one the waiver is not applied. Errors cannot be waived.

```yaml
waive:
  - cpu/oversubscribed: "router and validator are never busy together"
```

## Exit codes

| code | errors of | found when |
| --- | --- | --- |
| 0 | | done; warnings and notes do not change it |
| 1 | | a bug of ours, with a traceback |
"""

_PREFACE_END = """\
| 8 | | `render --check`: what is on disk differs from what the config compiles to |

The first stage with an error decides, also in `check` and `up`: where the binary on this host is among what does not
fit (`engine/…`), they exit 5. Pages whose code differs from their stage's say so. Codes of HTTP answers
(`model_not_found`) are not findings and have no slash.

## Words

*Override*: `KEY=VALUE` on the command line. *Group*: a folder of config files of which one or several are chosen.
*Slot*: a place for one request at a time in a server. *K/V*: what a model remembers of each token of the context;
takes memory for every token of every slot. *Draft*: a small model that guesses tokens ahead for a big one.
*Projector*: the part that turns images into embeddings. *mmap*: weights are pages of the file, shared and
reclaimable; *mlock*: pages are kept in RAM. *Tier*: when a server runs (from the start, on demand, never).
*Dialect*: which flags one llama-server build takes.
"""

_UNCHECKED = """\
## Not checked

Accidents that happened to people, and that no finding catches before a start, or only in part.
"""


def checks_page() -> str:
    """The text of `docs/checks.md`."""
    rows = [_exit_row(code) for code in sorted({s.exit_code for s in STAGES})]
    parts = [_PREFACE + "\n".join(rows) + "\n" + _PREFACE_END]
    pages = explanations()
    for stage in STAGES:
        parts.append(f"## {stage.name}\n\nFound when {stage.when}. Errors exit {stage.exit_code}.\n")
        parts += [_markdown(page) for page in pages if page.stage == stage.name]
    parts.append(_UNCHECKED)
    table = ["| about | accident | why |", "| --- | --- | --- |"]
    table += [f"| {u.part} | {u.row} | {u.why} |" for u in unchecked()]
    return "\n".join([*parts, "\n".join(table)]) + "\n"


def _exit_row(code: int) -> str:
    stages = [s for s in STAGES if s.exit_code == code]
    prefixes = ", ".join(f"`{p}/…`" for s in stages for p in s.prefixes)
    return f"| {code} | {prefixes} | {'; '.join(s.when for s in stages)} |"


def _markdown(page: Explanation) -> str:
    return (
        f"### `{page.code}`\n\n*{page.weight}*\n\n{page.meaning}\n\n```text\n{page.example}\n```\n\n"
        f"**What to do.** {page.remedy}\n"
    )


def main() -> None:
    """Write docs/checks.md to stdout."""
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr] # a real stdout has it
    sys.stdout.write(checks_page())


if __name__ == "__main__":
    main()
