"""Try out planned servers: start them beside the fleet on free ports, send batches, measure. I/O.

In: a compiled fleet, a server, settings. Out: samples with the server's own timings, appended to a CSV as they come and
read from it after an interruption.
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
