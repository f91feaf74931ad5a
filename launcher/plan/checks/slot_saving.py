"""Slots that are saved across a swap: where, and whether the server can use them again. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.errors import Finding
from launcher.plan.checks.planning import Planning, finding, set_field


def check_slot_saving(planning: Planning) -> Iterator[Finding]:
    """`plan/slot-save-path`: no absolute path. `plan/slot-save-useless`: what is restored is thrown away.

    Measured on real servers (tests/supervise/test_slots.py): a sliding window without `swa_full` finds no cached token.
    """
    for server in planning.running:
        path = server.config.slot_save_path
        if path is None:
            continue
        key = f"{server.key}.slot_save_path"
        if not path.startswith("/"):
            message = f"{path!r} is no absolute path: where it would be depends on who starts the server"
            yield finding("error", "plan/slot-save-path", key, message)
        if server.model.architecture.n_swa and not server.settings.swa_full:
            yield finding(
                "warning",
                "plan/slot-save-useless",
                key,
                f"{server.config.model} has a sliding window: after a swap the server finds none of what it restores",
                fixes=(set_field(server, "swa_full", True, "keeps the whole context of every layer"),),
            )
        elif server.config.exclusive is None:
            message = "slots are saved when another of an exclusive group takes its place, and it is in no such group"
            yield finding("warning", "plan/slot-save-useless", key, message)
