"""The config stage from end to end; imported late, because Hydra is slow to import. I/O: reads config files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from hydra.core.default_element import ResultDefault

from launcher.config.assignments import assign
from launcher.config.choices import choose
from launcher.config.decode import decode
from launcher.config.filled import Filler, by_engine
from launcher.config.index import PRIMARY, ConfigIndex, index_of
from launcher.config.interpolation import resolve
from launcher.config.located import LocatedTree, locate, mapping_at, shortened
from launcher.config.nearest import listing, nearest, set_to, spell
from launcher.config.references import CHECKS, cache_types
from launcher.config.repository import NO_PROBES, FragmentRepository, Virtual
from launcher.config.schema import shape_of
from launcher.config.shorthand import know_by_id, spell_out
from launcher.config.typed import Typed, parse_overrides
from launcher.errors import CatalogError, ConfigError, Finding, Fix, Location, fault, has_errors
from launcher.ir.catalog import ReadHeader, SeeDevices
from launcher.ir.config import Composed, FleetConfig, ServerConfig, SourceMap

INCLUDE = "include_warm"
"""The key that lists the servers."""


class Assembled(msgspec.Struct, frozen=True):
    """The merged tree with overrides applied, before its values are checked.

    `chosen`: the files in merge order. `known`: the groups that a plain `group=option` can choose.
    """

    located: LocatedTree
    chosen: list[ResultDefault]
    known: frozenset[str]
    findings: tuple[Finding, ...]


def compose(
    overrides: Sequence[str],
    *,
    config_dirs: Sequence[Path],
    virtual: Virtual = NO_PROBES,
    headers: ReadHeader | None = None,
    devices: SeeDevices | None = None,
    draft: str | None = None,
) -> Composed:
    """Compose, override, decode and cross-check the config.

    `config_dirs` are searched in order: a file of an earlier one shadows the same group and name in a later one,
    and `config.yaml` is the primary config. `virtual` maps config paths (`hardware/auto`) to functions that give
    the tree of that fragment; a function is called only when its option is chosen, and a file of the same name
    comes before it. A file among `config_dirs` is a whole fleet: a profile that is chosen. `headers` reads model files
    that stand in the place of what their headers say; raises CatalogError where it does. `devices` says what an engine
    sees of the machine's cards; `draft` is what the fleet file is taken to say. Raises ConfigError with every finding,
    each located; findings that stop nothing are in the result.
    """
    index = index_of(config_dirs, tuple(virtual), draft)
    typed, wrong = parse_overrides(overrides, index.groups)
    findings = [*index.findings, *wrong]
    name = index.fleet.partition("/")[2]
    if name:
        typed = [*parse_overrides([f"profile={name}"])[0], *typed]
    if PRIMARY not in index.files:
        raise ConfigError(shortened(findings if has_errors(index.findings) else [*findings, _no_primary(config_dirs)]))
    repository = FragmentRepository(index, virtual, draft)
    try:
        assembled = _with_included(repository, typed)
    except ConfigError as error:
        raise ConfigError(shortened([*findings, *repository.findings, *error.findings])) from None
    findings += [*repository.findings, *_without_followers(repository, assembled.findings)]
    incomplete = _incomplete(repository, findings)
    sources = SourceMap(locations=assembled.located.locations)
    tree, unresolved = resolve(assembled.located.tree)
    findings += unresolved
    if not name:
        _call_profile(tree, assembled.chosen)
    findings += by_engine(tree, sources, devices)
    file, here = index.files.get(index.fleet, ""), str(Path.cwd())
    filled = Filler(tree, sources, headers, file=file, name=name, here=here).run()
    if has_errors(filled):
        # what a header would have said is not also missing
        raise (ConfigError if has_errors(findings) else CatalogError)(_placed([*findings, *filled], index, sources))
    fleet, problems = _decoded(tree, sources, {finding.key for finding in unresolved}, incomplete=incomplete)
    reported = {finding.key for finding in findings if finding.key.startswith(f"{INCLUDE}.")}
    findings += [_with_group_choices(p, index, assembled.known) for p in problems if p.key not in reported]
    findings = _placed(findings, index, sources)
    if has_errors(findings):
        raise ConfigError(findings)
    return Composed(fleet=fleet, sources=sources, tree=tree, findings=tuple(findings))


def _placed(findings: Iterable[Finding], index: ConfigIndex, sources: SourceMap) -> list[Finding]:
    """The findings as they are shown: where the key was written, or at the primary config's beginning."""
    return shortened(locate(findings, sources, default=Location(file=index.files[PRIMARY], line=1)))


def _decoded(
    tree: dict[str, Any], sources: SourceMap, unresolved: set[str], *, incomplete: bool
) -> tuple[FleetConfig, list[Finding]]:
    """The config with findings about its values (except at `unresolved` keys) and then about its references.

    `incomplete`: a file is missing, and what it would have brought is not also reported as missing.
    """
    fleet, found = decode(FleetConfig, tree, sources)
    problems = [p for p in found if p.key not in unresolved]
    if incomplete or unresolved:
        return fleet, [p for p in problems if p.code != "config/missing"]
    if all("." in problem.key for problem in problems):
        wrong = [f"{problem.key}." for problem in problems]
        # a value that is wrong in itself has a stand-in, of which nothing is said, nor of what is below it
        crossed = [f for check in CHECKS for f in check(fleet)]
        problems += [
            f for f in crossed if not any(key.startswith(f"{f.key}.") or f"{f.key}.".startswith(key) for key in wrong)
        ]
    return fleet, problems


def _call_profile(tree: dict[str, Any], chosen: Iterable[ResultDefault]) -> None:
    """Name a profile without a name after its file."""
    paths = (default.config_path or "" for default in chosen if default.parent == PRIMARY)
    group, _, name = next((path for path in paths if path.startswith("profile/")), "").rpartition("/")
    profile = tree.setdefault("profile", {}) if group else None
    if isinstance(profile, dict):
        profile.setdefault("name", name)


def _without_followers(repository: FragmentRepository, findings: Sequence[Finding]) -> list[Finding]:
    """Findings without those that only follow from an unreadable or absent file."""
    homes = [
        "" if path.startswith("profile/") else fragment.home  # profiles choose files for every key
        for path, fragment in repository.fragments.items()
        if fragment.broken
    ]
    follows = [
        f
        for f in findings
        if f.code == "config/unknown-key"
        and any(f"{f.key}.".startswith(f"{home}.") if home else "." in f.key for home in homes)
    ]
    return [f for f in findings if f not in follows]


def _with_included(repository: FragmentRepository, typed: Sequence[Typed]) -> Assembled:
    """Assemble, and again with the servers that `include_warm` lists and the fleet lacks.

    The list may come from a file, so it is known only after a first pass; the files of that pass are kept. Raises
    ConfigError.
    """
    result = _assemble(repository, typed)
    included = result.located.tree.get(INCLUDE)
    if not isinstance(included, list) or not included or not all(isinstance(name, str) for name in included):
        return result  # decoding says what is wrong with it
    added, findings = _include(repository, result.located.tree, included)
    if added:
        as_typed, _ = parse_overrides([f"+server={spell(added)}"], first=0)
        result = _assemble(repository, [*typed, *as_typed])
    located = locate(findings, SourceMap(locations=result.located.locations))
    return msgspec.structs.replace(result, findings=result.findings + located)


def _assemble(repository: FragmentRepository, typed: Sequence[Typed]) -> Assembled:
    """Choose the files, merge them in order, and apply the value overrides. Raises ConfigError."""
    groups: list[Typed] = []
    values: list[Typed] = []
    for override in typed:
        is_group = repository.group_exists(override.key) and not isinstance(override.value, dict)
        (groups if is_group else values).append(override)
    chosen, known, findings = choose(repository, groups)
    located = LocatedTree()
    parts = [(fragment, fragment.home) for fragment in repository.catalogue]
    parts += [(repository.fragments[d.config_path or ""], d.package or "") for d in chosen]
    for fragment, package in parts:
        if not fragment.broken:
            located.embed(fragment.tree, package, fragment.marks)
    findings += _listed_twice(repository, chosen)
    home = os.environ.get("HOME", "")
    spell_out(located, home)  # before the overrides, which may be about what a short form stands for
    findings += assign(located, values, shape_of(FleetConfig), tuple(repository.index.groups))
    spell_out(located, home)
    know_by_id(located)
    return Assembled(located, chosen, known, tuple(findings))


def _incomplete(repository: FragmentRepository, findings: Sequence[Finding]) -> bool:
    """Whether a requested file is not in the tree, so that missing values are no findings of their own."""
    lacking = {"config/unknown-group", "config/unknown-option", "config/unreadable", "config/defaults"}
    return (
        bool(repository.phantoms)
        or any(fragment.broken for fragment in repository.fragments.values())
        or any(finding.code in lacking and finding.severity == "error" for finding in findings)
    )


def _with_group_choices(finding: Finding, index: ConfigIndex, known: Collection[str]) -> Finding:
    """A missing top-level key that is a config group is remedied by choosing an option."""
    if finding.code != "config/missing" or finding.key not in index.groups:
        return finding
    sign = "" if finding.key in known else "+"
    fixes = tuple(Fix(override=f"{sign}{finding.key}={option}") for option in index.options(finding.key)[:3])
    message = f"no {finding.key} is chosen"
    return msgspec.structs.replace(finding, message=message, fixes=fixes)


def _no_primary(config_dirs: Sequence[Path]) -> Finding:
    searched = ", ".join(map(str, config_dirs)) or "no directory"
    return fault(
        "config/unreadable",
        "",
        f"there is no {PRIMARY}.yaml in {searched}",
        "name the directory that has it with --config-dir",
        location=Location(file=str(config_dirs[0]), line=1) if config_dirs else None,
    )


def _include(
    repository: FragmentRepository, tree: Mapping[str, Any], names: Sequence[str]
) -> tuple[list[str], list[Finding]]:
    """Add the server/ files `names` to the composed `tree`; returns findings about wrong names."""
    present = mapping_at(tree, "servers")
    options = repository.index.options("server")
    added: list[str] = []
    findings: list[Finding] = []
    for i, name in enumerate(names):
        key = f"{INCLUDE}.{i}"
        rest = [other for j, other in enumerate(names) if j != i]
        if name in present:
            if _starts_at_boot(tree, present[name]):
                findings.append(_twice(key, name, f"servers.{name}", rest))
        elif name not in options:
            findings.append(_unknown(key, name, names, {*options, *present}))
        elif name in added:
            findings.append(_twice(key, name, f"servers.{name}", rest))
        else:
            package = repository.fragment(f"server/{name}").package or ""
            if package.removeprefix("servers.") in present:
                findings.append(_twice(key, name, package, rest))
            else:
                added.append(name)
    return added, findings


def _starts_at_boot(tree: Mapping[str, Any], server: Any) -> bool:
    tier = mapping_at(mapping_at(tree, "tiers"), server.get("tier") if isinstance(server, dict) else None)
    return tier.get("start") == "boot"


def _twice(key: str, name: str, package: str, rest: list[str]) -> Finding:
    return fault(
        "config/duplicate-server",
        key,
        f"{INCLUDE} names {name!r}, but the fleet starts {package} already: it would be started twice",
        f"drop it from {INCLUDE}",
        fixes=(set_to(INCLUDE, rest, f"{name} is started once"),),
    )


def _unknown(key: str, name: str, names: Sequence[str], known: set[str]) -> Finding:
    near = nearest(name, known)
    fixes: tuple[Fix, ...] = ()
    if near is not None and near not in names:
        fixes = (set_to(INCLUDE, [near if n == name else n for n in names], "the nearest name"),)
    return fault(
        "config/unknown-option",
        key,
        f"{INCLUDE} names {name!r}, which is neither a server of this profile nor a file of server/",
        listing("servers", known),
        fixes=fixes,
    )


def _listed_twice(repository: FragmentRepository, chosen: Iterable[ResultDefault]) -> list[Finding]:
    """Server files that the defaults list brings to one place more than once."""
    count = Counter(
        (default.config_path or "", default.package or "")
        for default in chosen
        if (default.config_path or "").startswith("server/") and not default.is_self
    )
    return [
        fault(
            "config/duplicate-server",
            package,
            f"{path} is listed {times} times: {package} would be started twice",
            f"list it once; another server like it is `+server@servers.NAME={path.removeprefix('server/')}`",
            location=repository.mention(path),
        )
        for (path, package), times in count.items()
        if times > 1 and path not in repository.phantoms
    ]


def server_from_fields(fields: Sequence[str]) -> ServerConfig:
    """A server with these fields (`n_ctx=16384 slots=2`) and no name, model or tier.

    Raises ConfigError with every finding.
    """
    typed, findings = parse_overrides(fields)
    tree: dict[str, Any] = {"model": "", "quantization": "", "tier": ""}
    places = {}
    for override in typed:
        tree[override.key] = override.value
        places[override.key] = override.location
    server, problems = decode(ServerConfig, tree)
    for problem in cache_types("server", server, ()):
        problems.append(msgspec.structs.replace(problem, key=problem.key.removeprefix("server."), fixes=()))
    for problem in problems:
        findings.append(msgspec.structs.replace(problem, location=places.get(problem.key.partition(".")[0])))
    if findings:
        raise ConfigError(shortened(findings))
    return server
