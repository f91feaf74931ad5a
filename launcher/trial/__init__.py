"""Planned servers tried out: started beside the fleet on ports of their own, asked in batches, measured. I/O.

In: a compiled fleet, a server, settings. Out: samples, which the server's own timings fill, appended to a CSV as they
come and taken from there after an interruption.
"""

from launcher.trial.experiment import Experiment, no_room
from launcher.trial.load import Prompts, read_prompts
from launcher.trial.reading import read_speed
from launcher.trial.server import TrialError
from launcher.trial.variant import Variant, measurement_of, utc_now, values_now, variant_of

__all__ = [
    "Experiment",
    "Prompts",
    "TrialError",
    "Variant",
    "measurement_of",
    "no_room",
    "read_prompts",
    "read_speed",
    "utc_now",
    "values_now",
    "variant_of",
]
