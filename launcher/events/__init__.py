"""The fleet's events: a bounded store on disk, and listeners. In: Happened values; out: Records. I/O."""

from launcher.events.log import FILE_NAME, EventLog, Listener
from launcher.events.store import read_records, store_files

__all__ = ["FILE_NAME", "EventLog", "Listener", "read_records", "store_files"]
