"""Values that the API server would refuse, or read as something else, found before anything is applied. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.errors import Finding, Fix
from launcher.ir.config import KubernetesConfig
from launcher.ir.plan import FleetPlan
from launcher.render.server_keys import own_key_file

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_RESOURCE = re.compile(r"(?=.{1,253}/)[a-z0-9.-]+/[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_NODE = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
_PATH = re.compile(r"/[^:\x00-\x1f]*")
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,253}")
_MOST_REPLICAS = 100


def bad_values(plan: FleetPlan, settings: KubernetesConfig) -> Iterator[Finding]:
    """`render/kubernetes-value`: names, images and numbers that no object may have."""
    label, subdomain = "letters a-z, digits and -, 63 at most", "letters a-z, digits, - and ., 253 at most"
    patterns = {
        "namespace": (settings.namespace, _LABEL, label),
        "keys_secret": (settings.keys_secret, _SUBDOMAIN, subdomain),
        "models_claim": (settings.models_claim, _SUBDOMAIN, subdomain),
        "state_claim": (settings.state_claim, _SUBDOMAIN, subdomain),
        "models_mount": (settings.models_mount, _PATH, "an absolute path without a colon"),
        "front_image": (settings.front_image, _IMAGE, "REGISTRY/NAME:TAG"),
    }
    for engine, image in settings.images.items():
        patterns[f"images.{engine}.image"] = (image.image, _IMAGE, "REGISTRY/NAME:TAG")
        patterns[f"images.{engine}.program"] = (image.program, _PATH, "an absolute path in the image")
    for backend, resource in settings.gpu_resources.items():
        patterns[f"gpu_resources.{backend}"] = (resource, _RESOURCE, "VENDOR/NAME, as nvidia.com/gpu")
    for host, node in settings.nodes.items():
        patterns[f"nodes.{host}"] = (node, _NODE, "a node's label kubernetes.io/hostname: a-z, digits, - and .")
    for key, (value, pattern, takes) in patterns.items():
        if value is not None and not pattern.fullmatch(value):
            yield _value(f"deploy.kubernetes.{key}", f"{value[:80]!a} is no {key.rpartition('.')[2]}: {takes}")
    if not 1 <= settings.front_replicas <= _MOST_REPLICAS:
        message = f"{settings.front_replicas} fronts: 1 to {_MOST_REPLICAS}"
        yield _value("deploy.kubernetes.front_replicas", message)
    used = ({s.on for s in plan.servers} | {s.on for s in plan.services}) - settings.nodes.keys()
    for host in plan.config.hardware.hosts:
        if host in used and not _NODE.fullmatch(host):
            fix = Fix(override=f"+deploy.kubernetes.nodes.{host}=NODE", effect="what its label says")
            message = f"no node's label kubernetes.io/hostname can be {host[:80]!a}: pods would wait for it for ever"
            yield _value(f"hardware.hosts.{host}", message, fix)


def bad_keys(plan: FleetPlan) -> Iterator[Finding]:
    """`render/kubernetes-key`: key files that are no entries of one secret, an entry a file by its name."""
    front = plan.config.runtime.front
    written = {
        "runtime.front.api_key_file": front.api_key_file,
        "runtime.front.tls_cert_file": front.tls_cert_file,
        "runtime.front.tls_key_file": front.tls_key_file,
        **{f"upstreams.{name}.key_file": one.key_file for name, one in plan.config.upstreams.items()},
        **{f"upstreams.{name}.ca_file": one.ca_file for name, one in plan.config.upstreams.items()},
    }
    shared = {plan.config.runtime.server_key_file: "runtime.server_key_file"}
    shared |= {host.api_key_file: f"hardware.hosts.{n}.api_key_file" for n, host in plan.config.hardware.hosts.items()}
    for server in plan.servers:
        path = own_key_file(server.config.extra_args)
        written[shared.get(path, f"servers.{server.name}.extra_args")] = path
    paths: dict[str, str] = {}
    for key, path in written.items():
        if path is None:
            continue
        name = path.rpartition("/")[2]
        if not path.startswith("/") or not _KEY.fullmatch(name) or name in (".", "..") or ":" in path:
            why = f"{path[:120]!a} is no entry of the secret: an absolute path, its name letters, digits and . _ -"
        elif paths.setdefault(name, path) != path:
            why = f"{path} and {paths[name]} would be one entry of the secret, {name}: whoever reads one gets the other"
        else:
            continue
        yield Finding(code="render/kubernetes-key", severity="error", key=key, message=why)


def _value(key: str, message: str, *fixes: Fix) -> Finding:
    return Finding(code="render/kubernetes-value", severity="error", key=key, message=message, fixes=fixes)
