"""The calculations of a sweep: points, figures from samples, recommendation, CSV, plot. Pure.

In: a server's fields with several values each; samples. Out: points; results; a recommendation with its uncertainty.
"""

from launcher.sweep.chart import plot
from launcher.sweep.points import GROUPS, current_of, grid, is_swept, setting_words, swept
from launcher.sweep.recommendation import ROUNDS, candidate, is_decided, recommend, recommended, verdict_of_all
from launcher.sweep.rows import read_rows, row_text
from launcher.sweep.statistics import batch_speeds, gain_of, percentile, summarise, with_expectation, with_multipliers

__all__ = [
    "GROUPS",
    "ROUNDS",
    "batch_speeds",
    "candidate",
    "current_of",
    "gain_of",
    "grid",
    "is_decided",
    "is_swept",
    "percentile",
    "plot",
    "read_rows",
    "recommend",
    "recommended",
    "row_text",
    "setting_words",
    "summarise",
    "swept",
    "verdict_of_all",
    "with_expectation",
    "with_multipliers",
]
