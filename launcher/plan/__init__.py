"""Decide what will run and how much memory it takes.

In: `FleetConfig` and `Catalog`. Out: `FleetPlan` with all findings. Pure: no file, clock or machine is read.

`plan_fleet` plans the fleet, `plan_of_host` takes one host's part of a plan; `settle` and `estimate` answer for a
single model (`launch inspect`); `apply_waivers` and `without_waived` also serve the findings of other stages. `peers`
is imported where a server is spread over several hosts, `proof` where a plan is checked against dry runs of its
binaries.
"""

from launcher.plan.checks.front import too_slow
from launcher.plan.checks.models import unsized
from launcher.plan.fleet import plan_fleet
from launcher.plan.hosts import front_host, plan_of_host
from launcher.plan.memory.process import estimate
from launcher.plan.settling import settle
from launcher.plan.speed import expected, speeds, touched
from launcher.plan.waivers import apply_waivers, sort_findings, without_waived

__all__ = [
    "apply_waivers",
    "estimate",
    "expected",
    "front_host",
    "plan_fleet",
    "plan_of_host",
    "settle",
    "sort_findings",
    "speeds",
    "too_slow",
    "touched",
    "unsized",
    "without_waived",
]
