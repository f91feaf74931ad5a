"""The page at `/ui`, and the stream of events that feeds it: static files, and `/v1/launch/…` behind them.

In: `Pages`, which knows the fleet. Out: routes for the control application. The front checks access. I/O.
"""
