"""Servers as pods of a Kubernetes cluster: watched, and scaled between 0 and 1 by the leading front alone. I/O.

In: the `ClusterUnit` of a manifest. Out: a `ProcessOwner`. `seen` is pure.
"""

from __future__ import annotations

from launcher.supervise.kubernetes.owner import Pods

__all__ = ["Pods"]
