"""wrk as the load: started for one measurement, its report read."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import msgspec

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
MESSAGE = {"role": "user", "content": "y" * 420}


class Figures(msgspec.Struct, frozen=True):
    """Median seconds of a request, and requests per second."""

    p50_s: float
    per_second: float


def script(path: Path, *, key: str | None) -> Path:
    """Write wrk's script: a 500-byte chat request for model `m`."""
    body = json.dumps({"model": "m", "stream": False, "messages": [MESSAGE]})
    lines = ['wrk.method = "POST"', 'wrk.headers["Content-Type"] = "application/json"', f"wrk.body = [[{body}]]"]
    if key is not None:
        lines.append(f'wrk.headers["Authorization"] = "Bearer {key}"')
    path.write_text("\n".join(lines) + "\n")
    return path


def measure(url: str, lua: Path, *, clients: int, seconds: int) -> Figures:
    """Load `url` from one thread. Raises RuntimeError when anything but 2xx is answered."""
    argv = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", "-s", str(lua), url]
    report = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in report or "Socket errors" in report:
        raise RuntimeError(f"{url} failed under load:\n{report}")
    median = re.search(r"50%\s+([\d.]+)(us|ms|s)", report)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", report)
    if median is None or rate is None:
        raise RuntimeError(f"wrk said something else:\n{report}")
    return Figures(float(median[1]) * _UNITS[median[2]], float(rate[1]))
