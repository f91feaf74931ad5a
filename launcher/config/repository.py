"""The config files as a repository for Hydra's defaults-list algorithm. I/O: reads each chosen file once.

Hydra's own repository makes OmegaConf nodes of every file with the pure-Python YAML loader, which is most of
what `hydra.compose` costs. The algorithm itself only asks which files exist, for their package headers and for
their defaults lists; this answers from `Fragment`s.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from hydra._internal.config_repository import IConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource

from launcher.config.index import CATALOGUE_GROUPS, DEFAULT_ENGINE, ENTRY_GROUPS, PRIMARY, ConfigIndex, unreadable
from launcher.config.yamltree import parse_yaml
from launcher.errors import THIS_MACHINE, Finding, Location, fault

_HEADER = re.compile(r"\s*#\s*@")
_PACKAGE = re.compile(r"[^\s.]+(\.[^\s.]+)*")

_MAX_BYTES = 8 * 1024**2
"""More than a fleet file of ten thousand servers has: reading /dev/zero must not fill the memory."""


class Fragment(msgspec.Struct, frozen=True):
    """One file: its values without the defaults list, the defaults list, and where each value was written.

    `package` is the header's, or the implied one of an entry group; None leaves it to Hydra (the group's name).
    `marks` has dotted keys inside the file; `""` is the file itself. `broken` when it could not be read.
    """

    path: str
    """Its config path: `server/frontdoor`."""
    file: str
    package: str | None = None
    tree: dict[str, Any] = {}
    marks: dict[str, Location] = {}
    findings: tuple[Finding, ...] = ()
    broken: bool = False
    defaults: tuple[InputDefault, ...] = ()
    names: dict[str, Location] = {}
    """Config paths that the defaults list names, and where."""
    interpolates: bool = False
    """Whether the defaults list has a `${…}`."""

    @property
    def home(self) -> str:
        """Where the values go when no defaults list says otherwise."""
        if self.package is None:
            return self.path.rpartition("/")[0].replace("/", ".")
        return self.package.removeprefix("_global_").removeprefix(".")


def read_fragment(path: str, file: str, *, everywhere: bool = False, draft: str | None = None) -> Fragment:
    """Read the file of config path `path` (`server/frontdoor`). What is wrong with it is in its findings.

    `everywhere`: without a header its keys are those of the whole config. `draft`: what it is taken to say.
    """
    implied = "_global_" if everywhere else _implied_package(path)
    try:
        text = _read_regular(file).decode("utf-8-sig") if draft is None else draft
    except (OSError, UnicodeDecodeError) as error:
        return Fragment(path, file, implied, findings=(unreadable(file, error),), broken=True)
    start = Location(file=file, line=1)
    package, findings = _package(text, file)
    name = path.rpartition("/")[2]
    if package is None and implied not in (None, "_global_", DEFAULT_ENGINE) and "." in name:
        message = f"{file} names no package, and its file name cannot be one: a dot starts a new level"
        note, key = f"rename it to {name.replace('.', '_')}.yaml", str(implied).partition(".")[0]
        findings.append(fault("config/package-header", key, message, note, location=start))
    fragment = Fragment(path, file, package or implied)
    parsed = parse_yaml(text, file=file, prefix=fragment.home)
    tree, marks = parsed.tree, {**parsed.marks, "": start}
    findings += parsed.findings
    broken = any(f.code in ("config/yaml", "config/package-header") for f in findings)
    listed = tree.pop("defaults", [])
    defaults, names = _defaults(path, listed, marks, findings)
    return msgspec.structs.replace(
        fragment,
        tree=tree,
        marks=marks,
        findings=tuple(findings),
        broken=broken,
        defaults=tuple(defaults),
        names=names,
        interpolates="${" in str(listed),
    )


def _read_regular(file: str) -> bytes:
    """All of `file`. Raises OSError, also where it is a FIFO, a device or the like, or is larger than `_MAX_BYTES`.

    A FIFO without a writer would block for ever when opened plainly, a terminal would become ours.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", file)
        data = opened.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than {_MAX_BYTES // 1024**2} MiB", file)
    return data


def _package(text: str, file: str) -> tuple[str | None, list[Finding]]:
    """The package that `# @package …` at the top of `text` names, as Hydra reads it, and what is wrong with it."""
    package = None
    in_header = True
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        if not _HEADER.match(line):
            if not line.lstrip().startswith("#"):
                break
            in_header = False
            continue
        words = line.lstrip("# \t").split()
        if words[0] != "@package":
            continue
        value = words[1] if len(words) == 2 else ""
        problem = ""
        if not in_header:
            problem = "the package header is ignored below another comment: it must be the first line"
        elif len(words) != 2 or not _PACKAGE.fullmatch(value):
            problem = f"not a package header: {line.strip()!r}"
        elif {"_name_", "_group_"} & set(value.split(".")):
            problem = f"_name_ and _group_ are not expanded in a package header: {line.strip()!r}"
        if problem:
            location = Location(file=file, line=number)
            note = "write the full place of the values, such as `# @package servers.frontdoor`"
            return None, [fault("config/package-header", "", problem, note, location=location)]
        package = value
    return package, []


def _implied_package(path: str) -> str | None:
    """The package of a file without a header in an entry group."""
    group, _, rest = path.partition("/")
    if not rest or group not in ENTRY_GROUPS:
        return None
    return DEFAULT_ENGINE if group == "engine" else f"{ENTRY_GROUPS[group]}.{rest.rpartition('/')[2]}"


def _defaults(
    path: str, listed: Any, marks: Mapping[str, Location], findings: list[Finding]
) -> tuple[list[InputDefault], dict[str, Location]]:
    """The defaults list of the file at `path` as Hydra's objects, and the config paths that it names, with their place.

    What cannot be an item is added to `findings`.
    """

    def refuse(key: str, message: str, note: str) -> None:
        place = marks.get(key, marks[""])
        findings.append(fault("config/defaults", key, message, note, location=place))

    elements: list[InputDefault] = []
    named: dict[str, Location] = {}
    if not isinstance(listed, list):
        refuse("defaults", "the defaults list must be a list", "write one `- group: option` a line below `defaults:`")
        return elements, named
    overriding = False
    directory = path.rpartition("/")[0]
    for position, item in enumerate(listed):
        key = f"defaults.{position}"
        try:
            element, names = _element(item)
        except ValueError as error:
            note = "write `- group: option`, `- /group: [a, b]`, `- override /group: option` or `- _self_`"
            refuse(key, f"not an item of a defaults list: {error}", note)
            continue
        if overriding and not element.is_override() and not element.is_self():
            message = "`override` items must be at the end of the defaults list, and this comes after one"
            refuse(key, message, "move it before the first `override`")
            continue
        overriding = overriding or element.is_override()
        elements.append(element)
        for name in names:
            absolute = name.removeprefix("/") if name.startswith("/") or not directory else f"{directory}/{name}"
            named.setdefault(absolute, marks.get(key, marks[""]))
    return elements, named


Virtual = Mapping[str, Callable[[], dict[str, Any]]]
"""Config path → what finds out its values on this machine."""
NO_PROBES: Virtual = MappingProxyType({})


class FragmentRepository(IConfigRepository):
    """Serves `ConfigResult`s with plain values. Every file and every probe is read at most once.

    `fragments` grows with the files read so far. A config path added to `phantoms` is taken for an empty file, so
    that one unknown name does not hide the next mistake.
    """

    def __init__(self, index: ConfigIndex, virtual: Virtual, draft: str | None = None) -> None:
        """`draft`: what the fleet file is taken to say."""
        self.index = index
        self.virtual = virtual
        self.draft = draft
        self.phantoms: set[str] = set()
        self.fragments: dict[str, Fragment] = {}
        self.interpolates = False
        """Whether some defaults list read so far has a `${…}`."""
        self.catalogue: tuple[Fragment, ...] = ()

    @property
    def findings(self) -> list[Finding]:
        """What is wrong in the files read so far."""
        return [finding for fragment in self.fragments.values() for finding in fragment.findings]

    def mention(self, config_path: str) -> Location | None:
        """Where a defaults list first named `config_path`."""
        named = (fragment.names.get(config_path) for fragment in self.fragments.values())
        return next((place for place in named if place is not None), None)

    def load_config(self, config_path: str) -> ConfigResult | None:
        """The file's header and defaults list; None when there is no such file."""
        if not self.config_exists(config_path):
            return None
        fragment = self.fragment(config_path)
        defaults = list(fragment.defaults)
        if config_path == PRIMARY:
            # a list without `_self_` ends with it: what Hydra does, but with a Python warning
            own = () if any(element.is_self() for element in defaults) else (ConfigDefault(path="_self_"),)
            defaults = [*self._catalogue(), *defaults, *own]
        header: dict[str, Any] = {"package": fragment.package}
        config: Any = fragment.tree
        return ConfigResult("launch", fragment.file, config, header, defaults)

    def fragment(self, path: str) -> Fragment:
        """What is at a config path that exists."""
        if path in self.fragments:
            return self.fragments[path]
        if path in self.index.files:
            whole = path == self.index.fleet
            draft = self.draft if whole else None
            fragment = read_fragment(path, self.index.files[path], everywhere=whole, draft=draft)
        elif path in self.virtual:
            start = Location(file=THIS_MACHINE, line=1)
            fragment = Fragment(path, THIS_MACHINE, tree=self.virtual[path](), marks={"": start})
        else:
            fragment = Fragment(path, path, _implied_package(path), broken=True)
        self.fragments[path] = fragment
        self.interpolates = self.interpolates or fragment.interpolates
        return fragment

    def group_exists(self, config_path: str) -> bool:
        """Whether a directory of that name exists."""
        return config_path in self.index.groups

    def config_exists(self, config_path: str) -> bool:
        """Whether the path is a file, a probe, or taken for one."""
        return config_path in self.index.files or config_path in self.virtual or config_path in self.phantoms

    def get_group_options(self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG) -> list[str]:
        """The options of a group; only configs are ever asked for."""
        del results_filter
        return list(self.index.options(group_name))

    def get_schema_source(self) -> ConfigSource:
        """Not asked by the defaults-list algorithm."""
        raise NotImplementedError

    def get_sources(self) -> list[ConfigSource]:
        """Only Hydra's own error texts ask; ours list the options instead."""
        return []

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        """Nothing to initialise."""

    def _catalogue(self) -> list[InputDefault]:
        """Read every file of the catalogue groups, to be merged first so that any other may amend an entry.

        Where one of them has a defaults list of its own, all are defaults of the primary config. Else `catalogue` has
        them: Hydra's algorithm would spend a millisecond on each of these fifty.
        """
        options = {group: list(self.index.options(group)) for group in CATALOGUE_GROUPS if self.index.options(group)}
        fragments = [self.fragment(f"{group}/{option}") for group, names in options.items() for option in names]
        if any(fragment.defaults for fragment in fragments):
            return [GroupDefault(group=group, value=names) for group, names in options.items()]
        self.catalogue = tuple(fragments)
        return []


def _element(item: Any) -> tuple[InputDefault, tuple[str, ...]]:
    """One item of a defaults list as `hydra._internal.config_repository` reads it, and the config paths it names.

    Of a package `a:b` the first counts. Raises ValueError with the reason when it is not one.
    """
    if isinstance(item, str):
        path, _, package = item.partition("@")
        if not path or (path == "_self_" and package):
            raise ValueError(repr(item))
        return ConfigDefault(path=path, package=package.partition(":")[0] if package else None), (path,)
    if not isinstance(item, dict) or len(item) != 1:
        raise ValueError(f"{item!r} is not one name or one `group: option`")
    ((key, value),) = item.items()
    if not isinstance(key, str):
        raise ValueError(f"{key!r} is not the name of a group")
    *keywords, group_and_package = key.split(" ")
    group, _, package = group_and_package.partition("@")
    if not group.strip("/") or not set(keywords) <= {"override", "optional", ""}:
        raise ValueError(repr(key))
    if value is not None and not isinstance(value, str | list):
        raise ValueError(f"the option of {group} must be a name, a list of names or null")
    if isinstance(value, list) and not all(isinstance(option, str) for option in value):
        raise ValueError(f"the options of {group} must be names")
    element = GroupDefault(
        group=group,
        value=value,
        package=package.partition(":")[0] if package else None,
        optional="optional" in keywords,
        override="override" in keywords,
    )
    options = value if isinstance(value, list) else [value]
    return element, tuple(f"{group}/{option}" for option in options)
