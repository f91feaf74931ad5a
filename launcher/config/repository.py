"""The config files as a repository for Hydra's defaults-list algorithm. I/O: reads each chosen file once.

Hydra's own repository makes OmegaConf nodes of every file with the pure-Python YAML loader, which is most of
what `hydra.compose` costs. The algorithm itself only asks which files exist, for their package headers and for
their defaults lists; this answers from `Fragment`s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from hydra._internal.config_repository import IConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ConfigDefault, GroupDefault, InputDefault
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource

from launcher.config.fragments import CATALOGUE_GROUPS, Fragment, probed_fragment, read_fragment
from launcher.config.index import PRIMARY, ConfigIndex
from launcher.config.located import has_interpolations
from launcher.errors import Finding, Location, fault

Virtual = Mapping[str, Callable[[], dict[str, Any]]]
"""Config path → what finds out its values on this machine."""
NO_PROBES: Virtual = MappingProxyType({})


class FragmentRepository(IConfigRepository):
    """Serves `ConfigResult`s with plain values. Every file and every probe is read at most once.

    `findings` grows with what is wrong in the files read so far. A config path added to `phantoms` is taken for
    an empty file, so that one unknown name does not hide the next mistake. `interpolates` once some defaults list
    read so far has a `${…}`. `leads` is what each file's defaults list names: config path → named path → where.
    """

    def __init__(self, index: ConfigIndex, virtual: Virtual, draft: str | None = None) -> None:
        """`draft`: what the fleet file is taken to say."""
        self.index = index
        self.virtual = virtual
        self.draft = draft
        self.phantoms: set[str] = set()
        self.findings: list[Finding] = []
        self.fragments: dict[str, Fragment] = {}
        self.interpolates = False
        self.mentions: dict[str, Location] = {}
        self.leads: dict[str, dict[str, Location]] = {}
        self.catalogue: tuple[Fragment, ...] = ()
        self._results: dict[str, ConfigResult] = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        """The file's header and defaults list; None when there is no such file."""
        if config_path in self._results:
            return self._results[config_path]
        if not self.config_exists(config_path):
            return None
        fragment = self._fragment(config_path)
        defaults = self._defaults(config_path, fragment)
        if config_path == PRIMARY:
            defaults = self._catalogue() + defaults
        config: Any = fragment.tree
        result = ConfigResult(
            provider="launch",
            path=fragment.file,
            config=config,
            header={"package": fragment.package},
            defaults_list=defaults,
        )
        self._results[config_path] = result
        return result

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
        """There is nothing to initialise."""

    def _fragment(self, config_path: str) -> Fragment:
        """The fragment of an existing config path, read the first time."""
        if config_path in self.fragments:
            return self.fragments[config_path]
        if config_path in self.index.files:
            whole = config_path == self.index.fleet
            draft = self.draft if whole else None
            fragment = read_fragment(config_path, self.index.files[config_path], everywhere=whole, draft=draft)
        elif config_path in self.virtual:
            fragment = probed_fragment(self.virtual[config_path]())
        else:
            fragment = Fragment(config_path, None, {}, [], {}, broken=True)
        self.fragments[config_path] = fragment
        self.interpolates = self.interpolates or has_interpolations(fragment.defaults)
        self.findings.extend(fragment.findings)
        return fragment

    def _catalogue(self) -> list[InputDefault]:
        """Read every file of the catalogue groups, to be merged first so that any other may amend an entry.

        Where one of them has a defaults list of its own, all are defaults of the primary config. Else `catalogue` has
        them: Hydra's algorithm would spend a millisecond on each of these fifty.
        """
        options = {group: list(self.index.options(group)) for group in CATALOGUE_GROUPS if self.index.options(group)}
        fragments = [self._fragment(f"{group}/{option}") for group, names in options.items() for option in names]
        if any(fragment.defaults for fragment in fragments):
            return [GroupDefault(group=group, value=names) for group, names in options.items()]
        self.catalogue = tuple(fragments)
        return []

    def _defaults(self, config_path: str, fragment: Fragment) -> list[InputDefault]:
        """The defaults list as Hydra's objects; what cannot be one is a finding."""
        elements: list[InputDefault] = []
        overriding = False
        directory = config_path.rpartition("/")[0]
        for position, item in enumerate(fragment.defaults):
            mark = fragment.marks.get(f"defaults.{position}", fragment.marks[""])
            try:
                element, names = _element(item)
            except ValueError as error:
                note = "write `- group: option`, `- /group: [a, b]`, `- override /group: option` or `- _self_`"
                self._refuse(position, mark, f"not an item of a defaults list: {error}", note)
                continue
            if overriding and not element.is_override() and not element.is_self():
                message = "`override` items must be at the end of the defaults list, and this comes after one"
                self._refuse(position, mark, message, "move it before the first `override`")
                continue
            overriding = overriding or element.is_override()
            elements.append(element)
            for name in names:
                absolute = name.removeprefix("/") if name.startswith("/") or not directory else f"{directory}/{name}"
                self.mentions.setdefault(absolute, mark)
                self.leads.setdefault(config_path, {}).setdefault(absolute, mark)
        if config_path == PRIMARY and not any(e.is_self() for e in elements):
            # what Hydra does, but with a Python warning
            elements.append(ConfigDefault(path="_self_"))
        return elements

    def _refuse(self, position: int, mark: Location, message: str, note: str) -> None:
        self.findings.append(fault("config/defaults", f"defaults.{position}", message, note, location=mark))


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
