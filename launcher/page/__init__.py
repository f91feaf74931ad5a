"""The page at `/ui`, and the stream of events that it lives on: static files, and `/v1/launch/…` behind them.

In: a PageHost, which knows the fleet. Out: routes for the control application. The front checks who asks. I/O.
"""

from launcher.page.app import page_routes
from launcher.page.host import PageHost

__all__ = ["PageHost", "page_routes"]
