"""Put rendered units in place on a machine, and take them away again.

In: a `Deployment` value. Out: files below /etc (or a user's own folders, or a tree), an ownership record below
/var/lib/launch, and a systemd that runs what the files say. I/O: files and systemctl. Only files recorded as ours are
changed.
"""

from __future__ import annotations

from launcher.install.changes import Change, Changes, plan_changes, plan_removal
from launcher.install.layout import Layout, bundle_files
from launcher.install.ownership import Source, installed_names, read_record
from launcher.install.present import (
    Component,
    Installed,
    Unit,
    file_drift,
    installed_fleet,
    installed_fleets,
    limit_drift,
    loaded_drift,
)
from launcher.install.steps import Report, install, install_lock, uninstall
from launcher.install.systemd import Systemd
from launcher.install.verify import verify_units

__all__ = [
    "Change",
    "Changes",
    "Component",
    "Installed",
    "Layout",
    "Report",
    "Source",
    "Systemd",
    "Unit",
    "bundle_files",
    "file_drift",
    "install",
    "install_lock",
    "installed_fleet",
    "installed_fleets",
    "installed_names",
    "limit_drift",
    "loaded_drift",
    "plan_changes",
    "plan_removal",
    "read_record",
    "uninstall",
    "verify_units",
]
