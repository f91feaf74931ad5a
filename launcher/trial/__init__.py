"""Planned servers tried out: started beside the fleet on ports of their own, asked in batches, measured. I/O.

In: a compiled fleet, a server, settings. Out: samples, which the server's own timings fill, appended to a CSV as they
come and taken from there after an interruption.
"""

from launcher.trial.candidate import Candidate, candidate_of, measurement_of, values_now
from launcher.trial.experiment import Experiment, no_room
from launcher.trial.prompts import Prompts, read_prompts
from launcher.trial.reading import read_speed
from launcher.trial.server import TrialError

__all__ = [
    "Candidate",
    "Experiment",
    "Prompts",
    "TrialError",
    "candidate_of",
    "measurement_of",
    "no_room",
    "read_prompts",
    "read_speed",
    "values_now",
]
