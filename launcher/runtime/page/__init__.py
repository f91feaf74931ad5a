"""The page at `/ui`, and the stream of events that it lives on: static files, and `/v1/launch/…` behind them.

In: `Pages`, which knows the fleet. Out: routes for the control application. The front checks who asks. I/O.
"""
