"""Many hosts on paper and by simulation: how planning grows, and how a front serves a thousand models.

`python -m benchmarks.cluster` does both. `planning` times the planner; `site` has the planner make the fleet that is
simulated; `load` draws requests and failures of hosts by a seed (pure); `hosts` are machines whose processes take their
planned time to load; `policies` decide who runs where; `simulation` plays one load on one policy in simulated time.
"""
