"""Fills in what a config leaves out, from a model file's header or by defaults. Pure but for the header reader.

A server with a `file` gets a model of its own; a model without architecture gets its file's. In a fleet file, and on
every server with a `file`, tier, port, slots, context and devices may be left out as well. A probed machine's cards get
the names that the chosen engine gives them: the driver says `cuda0`, a Vulkan build knows the same card as `Vulkan0`,
and a CPU build not at all.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import msgspec

from launcher.base.addresses import is_path
from launcher.config.located import mapping_at
from launcher.config.schema import Number, fields_of
from launcher.errors import THIS_MACHINE, CatalogError, Finding, Location, fault
from launcher.ir.backends import BACKENDS
from launcher.ir.catalog import HeaderFacts, ReadHeader, SeeDevices
from launcher.ir.config import SourceMap, TierConfig

PORTS = range(18001, 18901)
"""Range of ports for servers without one."""
SLOTS = 2
"""One for the chat, one for what a client asks beside it (titles, suggestions)."""
CONTEXT = 8192
"""Tokens per slot by default, as far as the model was trained for them."""
EMBEDDING_CONTEXT = 2048
"""The default for an embedder, whose batch must hold a whole text."""
CACHE_MIB = 1024
"""Default prompt cache of a chat; llama-server's own 8 GiB per server exceed a machine of several models."""
_ENCODER_POOLING = (None, "none")

_BY_DEVICE = {
    device: name
    for name, known in BACKENDS.items()
    for device in (known.device, known.other_device)
    if device and name != "rpc"
}
"""llama.cpp's device names without their number → backend."""
_CARD = re.compile(rf"({'|'.join(_BY_DEVICE)})(\d+)")


class Filler:
    """Writes the values that nobody wrote into a config's tree."""

    def __init__(
        self, tree: dict[str, Any], sources: SourceMap, read: ReadHeader | None, *, file: str, name: str, here: str
    ) -> None:
        """`file`, `name`: the fleet file and the fleet's, empty without one; `here`: where the config was typed.

        Without `read` no header can be asked, and only what needs none is filled in.
        """
        self.tree, self.sources, self.read = tree, sources, read
        self.file, self.name, self.here = file, name, here
        self.findings: list[Finding] = []
        self.facts: dict[str, HeaderFacts] = {}
        self.hardware = mapping_at(tree, "hardware")
        model_dir = self.hardware.get("model_dir")
        self.model_dir = model_dir if isinstance(model_dir, str) and model_dir != "." else ""

    def run(self) -> list[Finding]:
        """Fill in everything, each value after those it depends on; returns findings about unread files."""
        servers = {n: s for n, s in mapping_at(self.tree, "servers").items() if isinstance(s, dict)}
        if self.name:
            self._fleet()
        easy = [name for name, server in servers.items() if "file" in server or self._ours(f"servers.{name}")]
        self._files(servers)
        for name in easy:
            self._guesses(str(name), servers[name])
        for server in servers.values():
            self._encoder(server)
            if server.get("devices") == "auto":
                self._devices(server)
            self._ttl(server)
        if easy:
            self._ports(servers, easy)
        return self.findings

    def _files(self, servers: Mapping[Any, dict[str, Any]]) -> None:
        """Models of the files that servers and drafts name, and what models leave out."""
        for name, server in servers.items():
            if server.get("file"):
                self._server_file(str(name), server)
            draft = server.get("draft")
            if isinstance(draft, dict) and draft.get("file"):
                self._draft_file(str(name), draft)
        for server in servers.values():
            self._server_model(server)

    def _made(self, key: str) -> dict[Any, Any]:
        """The mapping at a top-level key, made where there is none."""
        if self.tree.get(key) is None:
            self.tree[key] = {}
        return mapping_at(self.tree, key)

    def _ours(self, key: str) -> bool:
        place = self.sources.locations.get(key)
        return bool(self.file) and place is not None and place.file == self.file

    def _fleet(self) -> None:
        """The fleet's name, its engines' dialects, and who answers when a request names nobody."""
        profile = self._made("profile")
        if "name" not in profile:
            profile["name"] = self.name
            self.sources.locations.setdefault("profile.name", Location(file=self.file, line=1))
        for name, engine in mapping_at(self.tree, "engines").items():
            here = f"engines.{name}"
            if not isinstance(engine, dict):
                continue
            written = self._ours(f"{here}.binary") or (self._ours(here) and "dialect" not in engine)
            if written and not self._ours(f"{here}.dialect"):
                engine["dialect"] = "probe"  # what another engine of this name spoke says nothing of this one
                if not self._ours(f"{here}.cpu_features"):
                    engine.pop("cpu_features", None)

    def _path(self, path: str, key: str) -> str:
        """A path as the catalogue takes it: relative ones start where they were written, or in `model_dir`."""
        if os.path.isabs(path) or "://" in path or self.model_dir:  # noqa: PTH117 - a string is wanted
            return path
        place = self.sources.find(key)
        ours = self.file and place is not None and place.file == self.file
        folder = os.path.dirname(self.file) if ours else self.here  # noqa: PTH120
        return os.path.normpath(os.path.join(folder, path))  # noqa: PTH118

    def _header(self, path: str, key: str) -> HeaderFacts | None:
        if self.read is None:
            return None
        where = path if "://" in path else os.path.join(self.model_dir, path)  # noqa: PTH118
        try:
            return self.read(where, key)
        except CatalogError as error:
            self.findings += error.findings
            return None

    def _model(self, name: str, path: Any, key: str) -> tuple[str, HeaderFacts] | None:
        """A model of its own for the file at `path`; its name and facts."""
        if not isinstance(path, str):
            message = f"{key} must be the path of a GGUF file, not {path!r}"
            self.findings.append(fault("config/type", key, message, "write a path"))
            return None
        path = self._path(path, key)
        facts = self._header(path, key)
        if facts is None:
            return None
        if facts.is_projector:
            message = f"{path!r} is a multimodal projector, not a model"
            note = f"write it as `projector: {path}` of the server whose `file` is its model"
            self.findings.append(fault("catalog/not-a-model", key, message, note))
            return None
        models = self._made("models")
        while name in models:
            name = f"{name}_file"
        models[name] = self._described(facts, path) | {"files": {facts.file.quantization: {"path": path}}}
        self._quantization(facts)
        self.facts[name] = facts
        return name, facts

    def _described(self, facts: HeaderFacts, path: str) -> dict[str, Any]:
        architecture = msgspec.json.decode(msgspec.json.encode(facts.file.architecture))  # as YAML has it: no tuples
        return {"title": facts.file.model, "source": f"header of {path}", "architecture": architecture}

    def _quantization(self, facts: HeaderFacts) -> None:
        """The quantization that a file names is one of the catalogue's."""
        name = facts.file.quantization
        mix = {"mix": name.upper(), "default_type": facts.base_type}
        self._made("quantizations").setdefault(name, {**mix, "block": facts.block, "block_bytes": facts.block_bytes})

    def _server_file(self, name: str, server: dict[str, Any]) -> None:
        """Model and quantization of a server that names its file; its projector is the model's."""
        made = self._model(name, server["file"], f"servers.{name}.file")
        if made is None:
            return
        server["model"], facts = made[0], made[1]
        server["quantization"] = facts.file.quantization
        projector = server.get("projector")
        if isinstance(projector, str):
            key = f"servers.{name}.projector"
            path = self._path(projector, key)
            found = self._header(path, key)
            if found is not None and not found.is_projector:
                message = f"{path!r} is a model, not a multimodal projector"
                note = "a projector's file is usually called mmproj-….gguf"
                self.findings.append(fault("catalog/projector-mismatch", key, message, note))
            size = {"bytes": found.file.tensor_bytes} if found is not None else {}
            self._made("models").setdefault(made[0], {})["projector"] = {"path": path, **size}
            server["projector"] = True

    def _draft_file(self, name: str, draft: dict[str, Any]) -> None:
        """Model and quantization of a draft that is named by its file."""
        made = self._model(f"{name}_draft", draft.pop("file"), f"servers.{name}.draft")
        if made is not None:
            draft["model"], draft["quantization"] = made[0], made[1].file.quantization

    def _server_model(self, server: dict[str, Any]) -> None:
        """Fill in the fields of a server's model, and the quantization where the model has one file."""
        model = mapping_at(mapping_at(self.tree, "models"), server.get("model"))
        if not model or server.get("file"):
            return
        path = model.pop("path", None)
        key = f"models.{server['model']}"
        if isinstance(path, str):
            facts = self._header(self._path(path, key), key)
            if facts is None:
                return
            model["files"] = {facts.file.quantization: {"path": self._path(path, key)}}
            self._quantization(facts)
        files = model.get("files")
        if not isinstance(files, dict) or not files:
            return
        if not server.get("quantization") and len(files) == 1:
            server["quantization"] = next(iter(files))
        if all(field in model for field in ("title", "source", "architecture")):
            return
        quantization = server.get("quantization")
        file = files.get(quantization) if isinstance(quantization, str) else None
        if isinstance(file, dict) and isinstance(file.get("path"), str):
            key = f"{key}.files.{quantization}.path" if path is None else key
            file["path"] = self._path(file["path"], key)
            facts = self._header(file["path"], key)
            if facts is not None:
                for field, value in self._described(facts, file["path"]).items():
                    model.setdefault(field, value)
                self.facts[server["model"]] = facts

    def _guesses(self, name: str, server: dict[str, Any]) -> None:
        """Defaults for tier, slots, context and devices."""
        facts = self.facts.get(str(server.get("model")))
        server.setdefault("tier", "hot" if server.get("ttl_s") is None else "warm")
        if facts is not None:
            self._context(server, facts)
        if "devices" not in server and self.hardware.get("gpus") and not self.hardware.get("hosts"):
            server["devices"] = "auto"
        if server.get("devices") and server["devices"] != "auto":
            server.setdefault("n_gpu_layers", "auto")  # who names a card wants layers on it
        if self._ours(f"servers.{name}") and not server.get("embedding"):
            self._made("routing").setdefault("default", name)

    def _context(self, server: dict[str, Any], facts: HeaderFacts) -> None:
        """Slots and context: an embedder's batch holds a whole slot, a chat's is what two people write in a while."""
        architecture = facts.file.architecture
        if not architecture.causal or architecture.pooling not in _ENCODER_POOLING:
            server.setdefault("embedding", True)
        server.setdefault("slots", SLOTS)
        embeds = bool(server.get("embedding"))
        if server.get("n_ctx") is None and server.get("n_ctx_per_slot") is None:
            usual = EMBEDDING_CONTEXT if embeds else CONTEXT
            server["n_ctx_per_slot"] = min(architecture.n_ctx_train or usual, usual)
        if embeds:
            slots = server["slots"] if isinstance(server["slots"], int) else SLOTS
            each = server.get("n_ctx_per_slot")
            whole = server.get("n_ctx") or (each * slots if isinstance(each, int) else None)
            if isinstance(whole, int):
                server.setdefault("n_batch", max(512, whole))
                server.setdefault("n_ubatch", server["n_batch"])
        server.setdefault("cache_ram_mib", 0 if embeds else CACHE_MIB)

    def _encoder(self, server: dict[str, Any]) -> None:
        """A model that cannot complete text embeds, even where `embedding` is not set: a completion would fail."""
        model = mapping_at(mapping_at(self.tree, "models"), server.get("model"))
        architecture = mapping_at(model, "architecture")
        if architecture.get("causal") is False or "bert" in str(architecture.get("arch")):
            server.setdefault("embedding", True)

    def _devices(self, server: dict[str, Any]) -> None:
        """`auto`: every card of the machine, and as many layers on them as fit."""
        server["devices"] = list(mapping_at(self.hardware, "gpus"))
        if server["devices"]:
            server.setdefault("n_gpu_layers", "auto")

    def _ttl(self, server: dict[str, Any]) -> None:
        """`ttl_s`: a tier like the server's own that stops after so long without a request."""
        ttl, tiers = server.get("ttl_s"), mapping_at(self.tree, "tiers")
        base = tiers.get(server["tier"]) if isinstance(server.get("tier"), str) else None
        if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not isinstance(base, dict):
            return
        allowed = fields_of(TierConfig)["idle_timeout_s"].shape
        if isinstance(allowed, Number) and not allowed.has(ttl):
            return  # decoding says so, of what was written
        name = f"{server['tier']}_{ttl:.15g}s".replace(".", "_")
        tiers.setdefault(name, {**base, "idle_timeout_s": ttl})
        server["tier"] = name

    def _ports(self, servers: Mapping[str, dict[str, Any]], easy: list[str]) -> None:
        """A port for each server without one, derived from its name: it keeps it when others come and go."""
        ports, services = mapping_at(self.tree, "ports"), mapping_at(self.tree, "services")
        front = mapping_at(mapping_at(self.tree, "runtime"), "front")
        listening = (*servers.values(), *(mapping_at(services, name) for name in services), front)
        written = (*(entry.get("port") for entry in listening), *ports.values())
        used = {port for port in written if isinstance(port, int)}
        for name in easy:
            if is_path(str(servers[name].get("host", ""))):
                continue
            if servers[name].get("port") is None and name not in ports:
                first = crc32(str(name).encode(errors="replace")) % len(PORTS)
                free = (port for port in (*PORTS[first:], *PORTS[:first]) if port not in used)
                servers[name]["port"] = port = next(free, PORTS[0])
                used.add(port)


def by_engine(tree: Mapping[str, Any], sources: SourceMap, see: SeeDevices | None) -> list[Finding]:
    """Rename the cards of a probed machine in `tree` to the default engine's names, in place.

    Cards that somebody wrote keep their names. A warning where the engine sees none of the present ones.
    """
    gpus = mapping_at(mapping_at(tree, "hardware"), "gpus")
    entry = mapping_at(mapping_at(tree, "engines"), "default")
    written = (place for key, place in sources.locations.items() if f"{key}.".startswith("hardware.gpus."))
    if see is None or not gpus or not entry:
        return []
    if any(place.file != THIS_MACHINE for place in written) or tree["hardware"].get("name") != "auto":
        return []
    listed = see(entry)
    if listed is None:
        return []
    known = {seen.name: seen for seen in listed if _CARD.fullmatch(seen.name)}
    sizes = {str(gpu.get("model")): gpu.get("vram_bytes") for gpu in gpus.values()}
    tree["hardware"]["gpus"] = {
        name.lower().replace("mtl", "metal"): {
            "backend": _BY_DEVICE[name.rstrip("0123456789")],
            "vram_bytes": sizes.get(seen.model) or seen.total_bytes,
            "model": seen.model,
            "target_min": 0.0,  # nobody said how full it should be
        }
        for name, seen in known.items()
        if sizes.get(seen.model) or seen.total_bytes
    }
    return [] if tree["hardware"]["gpus"] else [_unseen(entry, gpus)]


def _unseen(entry: Mapping[str, Any], gpus: Mapping[str, Any]) -> Finding:
    cards = ", ".join(str(gpu.get("model") or name) for name, gpu in gpus.items())
    return fault(
        "engine/cards-unseen",
        "engines.default.binary",
        f"{entry.get('binary')} sees no card, and this machine has {cards}: models run in RAM",
        "a build for the card (CUDA, Vulkan, ROCm) would use it: engines.default.binary=/path/to/llama-server",
        "a build that has the backend may lack its driver's libraries: engines.default.library_path",
        severity="warning",
    )
