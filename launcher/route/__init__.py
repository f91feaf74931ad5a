"""The data plane: one HTTP port for the whole fleet.

In: a RoutingTable, and Upstreams that know which servers are ready. Out: a `Front`, served by `serve`; `control_app`
for the control API. I/O: sockets, the API key file; hot path.
"""

from __future__ import annotations

from launcher.route.api import control_app
from launcher.route.doors import Listeners
from launcher.route.front import Front
from launcher.route.pages import figures
from launcher.route.server import bind, bind_more, serve
from launcher.route.upstreams import AskedUpstreams, StaticUpstreams, with_remote

__all__ = [
    "AskedUpstreams",
    "Front",
    "Listeners",
    "StaticUpstreams",
    "bind",
    "bind_more",
    "control_app",
    "figures",
    "serve",
    "with_remote",
]
