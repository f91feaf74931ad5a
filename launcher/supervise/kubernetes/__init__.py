"""Servers that are pods of a Kubernetes cluster: seen, scaled between none and one, and by one front alone. I/O.

In: the `ClusterUnit` of a manifest. Out: a `ProcessOwner`. `seen` is pure.
"""

from __future__ import annotations

from launcher.supervise.kubernetes.owner import Pods

__all__ = ["Pods"]
