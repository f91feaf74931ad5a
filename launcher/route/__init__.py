"""The data plane: one HTTP port for the whole fleet.

In: a RoutingTable, and Upstreams that know which servers are ready. Out: an ASGI app (`Front`), served by `serve`;
`control_app` for the control API. I/O: sockets, the API key file; hot path.
"""

from __future__ import annotations

from launcher.route.api import control_app
from launcher.route.asgi import ASGIApp
from launcher.route.figures import figures
from launcher.route.front import Front
from launcher.route.server import bind, serve
from launcher.route.upstreams import StaticUpstreams, with_remote

__all__ = ["ASGIApp", "Front", "StaticUpstreams", "bind", "control_app", "figures", "serve", "with_remote"]
