"""Write a fleet file from what is on a machine: YAML, with reasons as comments. Pure.

In: model files with their headers, memory, GPUs, the memory that each model needs at each context length. Out: which
models run, when, with how much context, and the text of `launch.yaml`; edits of such a text that add or remove a
server.
"""

from launcher.author.choice import MemoryBudget, Needs, ServerChoice, choose
from launcher.author.edit import add_server, remove_server
from launcher.author.joining import Neighbour, Way, room, ways, would_make_room
from launcher.author.pairing import ServerCandidate, candidates, free_name, slug
from launcher.author.sharing import leave_group, share
from launcher.author.text import Machine, fleet_text, flow, modeline, scalar, server_lines

__all__ = [
    "Machine",
    "MemoryBudget",
    "Needs",
    "Neighbour",
    "ServerCandidate",
    "ServerChoice",
    "Way",
    "add_server",
    "candidates",
    "choose",
    "fleet_text",
    "flow",
    "free_name",
    "leave_group",
    "modeline",
    "remove_server",
    "room",
    "scalar",
    "server_lines",
    "share",
    "slug",
    "ways",
    "would_make_room",
]
