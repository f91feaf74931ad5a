"""Dry runs of servers by their own binaries, compared with the plan.

In: a compiled or rendered fleet. Out: the memory that the servers' own binaries report, and findings. For each server:
header (the real file, or a sparse one made from the catalogue) → command line as it would run → `no_alloc` pass of its
binary → differences. In parallel, cached; no model file and no GPU are needed for `prove`.
"""

from launcher.proving.fleet import prove, prove_file, prove_fleet
from launcher.proving.here import prove_here
from launcher.proving.rendered import prove_rendered

__all__ = ["prove", "prove_file", "prove_fleet", "prove_here", "prove_rendered"]
