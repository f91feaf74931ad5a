"""Which config files make up the config: Hydra's defaults-list algorithm, with every mistake collected. Pure.

Hydra stops at the first mistake. Here an unknown name is noted, replaced by an empty file, and the algorithm runs
again; likewise an override that fits nothing is noted and left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra import version
from hydra._internal.defaults_list import Overrides, _create_defaults_list
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from launcher.config.index import CATALOGUE_GROUPS, ENTRY_GROUPS, PRIMARY, ConfigIndex
from launcher.config.nearest import listing, meant, nearest
from launcher.config.references import cycles
from launcher.config.repository import FragmentRepository
from launcher.config.typed import Typed, refused
from launcher.errors import ConfigError, Finding, Fix, Location, fault

_ABOUT = re.compile(r"Could not (override|delete) '([^'=]+)")
_MULTIPLE = re.compile(r"Multiple values for ([^ ]+)\.")


class _Overrides(Overrides):
    """Hydra's record of overrides and choices.

    Hydra makes an OmegaConf node of `known_choices` for every file, for defaults lists that interpolate another
    choice; that is half of the algorithm's time. So the choices are shown only once some file interpolates.
    """

    def __init__(self, repository: FragmentRepository, groups: Sequence[Typed]) -> None:
        self.chosen: dict[str, str | None] = {}
        self.shown = True
        self.repository = repository
        super().__init__(repo=repository, overrides_list=[o.meaning for o in groups])
        self.shown = False

    @property
    def known_choices(self) -> dict[str, str | None]:
        """Group → the option chosen so far, once some file interpolates choices."""
        return self.chosen if self.shown or self.repository.interpolates else {}

    @known_choices.setter
    def known_choices(self, choices: dict[str, str | None]) -> None:
        self.chosen = choices

    def set_known_choice(self, default: InputDefault) -> None:
        """Note a choice; Hydra refuses two for one key."""
        self.shown = True
        super().set_known_choice(default)
        self.shown = False


def choose(
    repository: FragmentRepository, groups: Sequence[Typed]
) -> tuple[list[ResultDefault], frozenset[str], list[Finding]]:
    """The files in merge order, the groups that a plain `group=option` can choose, and what is wrong with `groups`.

    Runs Hydra's algorithm with the group overrides `groups`. Raises ConfigError when there is nothing to merge.
    """
    version.setbase("1.3")  # Hydra's current rules; older ones print deprecation warnings
    left: list[Typed] = []
    findings: list[Finding] = []
    for override in groups:
        problems = _problems(repository.index, override)
        findings += problems
        if not problems:
            left.append(override)
    while True:
        try:
            overrides = _Overrides(repository, left)
            # hydra.defaults_list.create_defaults_list, with our Overrides
            defaults, _ = _create_defaults_list(repository, PRIMARY, overrides, prepend_hydra=False, skip_missing=True)
            overrides.ensure_overrides_used()
            overrides.ensure_deletions_used()
        except MissingConfigException as error:
            path = error.missing_cfg_file or ""
            if not path or path in repository.phantoms:
                raise ConfigError([*findings, _failed(repository, error)]) from error
            findings.append(_not_found(repository, path, error))
            repository.phantoms.add(path)
        except (HydraException, OmegaConfBaseException, ValueError, AssertionError, TypeError, RecursionError) as error:
            # Hydra asserts on what users write, and a defaults list that names itself recurses
            culprit = _culprit(left, str(error))
            if culprit is None:
                raise ConfigError([*findings, _failed(repository, error)]) from error
            findings.append(_unfit(repository.index, culprit, str(error)))
            left.remove(culprit)
        else:
            return defaults, frozenset(overrides.chosen), findings


def _problems(index: ConfigIndex, override: Typed) -> list[Finding]:
    group, value, meaning = override.key, override.value, override.meaning
    if meaning.is_delete():
        if value is None or isinstance(value, str):
            return []
        fix = Fix(override=f"~{group}", effect="removes the choice whatever it is")
        return [refused(override, "a config group is removed by name", fixes=(fix,))]
    if meaning.is_force_add():
        fix = Fix(override=override.text[1:], effect="adds to the defaults list")
        return [refused(override, "a group cannot be added by force", fixes=(fix,))]
    options = value if isinstance(value, list) else [value]
    if not value or not all(isinstance(option, str) for option in options):
        return [refused(override, "a config group is chosen by name", listing(f"in {group}/", index.options(group)))]
    plain = not meaning.is_add() and override.meaning.package is None
    if plain and group in CATALOGUE_GROUPS:
        fix = Fix(override=f"servers.NAME.{group}={override.value_text}", effect=f"for the server NAME: its {group}")
        why = f"every file of {group}/ is loaded already; a {group} is chosen for each server"
        return [refused(override, why, fixes=(fix,))]
    known = index.options(group)
    return [_unknown_option(group, option, known, override) for option in options if option not in known]


def _unknown_option(group: str, option: str, options: Sequence[str], override: Typed) -> Finding:
    near = nearest(option, options)
    fixes: tuple[Fix, ...] = ()
    if near is not None:
        head, _, value = override.text.partition("=")
        changed = re.sub(rf"(?<![\w./-]){re.escape(option)}(?![\w./-])", near, value)
        fixes = (Fix(override=f"{head}={changed}", effect="the nearest option"),)
    return fault(
        "config/unknown-option",
        group.replace("/", "."),
        f"the group {group}/ has no option {option!r}",
        listing(f"in {group}/", options),
        fixes=fixes,
        location=override.location,
    )


def _not_found(repository: FragmentRepository, path: str, error: Exception) -> Finding:
    index = repository.index
    group, _, option = path.rpartition("/")
    location = repository.mention(path) or _list_named_in(repository, str(error))
    if group and group not in index.groups:
        below = group.rpartition("/")[2]  # a relative name begins in the group of the file that names it
        near = nearest(group, index.groups)
        notes = meant(near and f"{near}/")
        if below != group and below in index.groups:
            notes = (
                f"did you mean /{below}? With the slash it is the group at the top: defaults: [{{/{below}: […]}}]",
            )
        return fault(
            "config/unknown-group",
            group.replace("/", "."),
            f"there is no config group {group}/ (wanted for {option!r})",
            *notes,
            listing("groups", index.groups),
            location=location,
        )
    options = index.options(group) if group else [p for p in index.files if "/" not in p]
    message = f"the group {group}/ has no option {option!r}" if group else f"there is no config file {option}.yaml"
    return fault(
        "config/unknown-option",
        group.replace("/", "."),
        message,
        *meant(nearest(option, options)),
        listing(f"in {group}/" if group else "files", options),
        location=location,
    )


def _culprit(overrides: Sequence[Typed], message: str) -> Typed | None:
    """The typed override that Hydra's error text is about, if it is about one."""
    about, multiple = _ABOUT.search(message), _MULTIPLE.search(message)
    key = about[2] if about else multiple[1] if multiple else None
    if key is None or message.startswith("In '"):
        return None
    same = [o for o in overrides if o.location.line and o.meaning.get_key_element().lstrip("+~") == key]
    return same[-1] if same else None


def _unfit(index: ConfigIndex, override: Typed, message: str) -> Finding:
    group = override.key
    if _MULTIPLE.search(message):
        return refused(override, f"{group} is chosen twice", f"name them in one list: +{group}=[a,b]")
    if override.meaning.is_delete():
        entry = ENTRY_GROUPS.get(group)
        note = f"remove an entry with ~{entry}.NAME" if entry else f"nothing chooses {group}"
        return refused(override, f"no plain choice of {group} in the defaults list", note)
    why = f"the defaults list has no plain choice of {group} to replace"
    fix = Fix(override=f"+{override.text}", effect="adds it to the defaults list")
    return refused(override, why, listing(f"in {group}/", index.options(group)), fixes=(fix,))


def _failed(repository: FragmentRepository, error: Exception) -> Finding:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    leads = {path: fragment.names for path, fragment in repository.fragments.items()}
    cycle = next(iter(cycles(leads)), None) if isinstance(error, RecursionError) else None
    if cycle:
        return fault(
            "config/defaults",
            "defaults",
            "a defaults list leads back to itself: " + " → ".join([*cycle, cycle[0]]),
            "remove one of these from the defaults list that names it",
            location=leads[cycle[0]][(*cycle[1:], cycle[0])[0]],
        )
    if isinstance(error, RecursionError):
        message = "a defaults list leads back to itself"
    elif isinstance(error, AssertionError):
        message, lines = "Hydra cannot make sense of this defaults list", []
    note = "a defaults list names each group once; `override` items come last"
    return fault(
        "config/defaults", "defaults", message, *lines[1:], note, location=_list_named_in(repository, str(error))
    )


def _list_named_in(repository: FragmentRepository, message: str) -> Location:
    """The defaults list of the file that Hydra's `In 'file': …` names, else of the primary config."""
    inside = re.match(r"In '?([^':]+)'?: ", message)
    fragment = repository.fragments.get(inside[1] if inside else PRIMARY)
    if fragment is None or not fragment.marks:
        return Location(file=repository.index.files[PRIMARY], line=1)
    return fragment.marks.get("defaults", fragment.marks[""])
