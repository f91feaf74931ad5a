"""One server under several model names, each with its own request values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.ir.fleet import FaceUnit
from launcher.route import Front
from tests.route.fleet import OK, FakeFleet, answering, ask, front_unit, get, post, running, table, target

pytestmark = pytest.mark.timeout(300)
THINKS = "org/model-1.5:thinking"
FACES = {
    THINKS: FaceUnit(request_set={"thinking": True}, description="thinks first"),
    "code": FaceUnit(request_defaults={"temperature": 0.1}, request_strip=("seed",)),
}


async def test_faces(tmp_path: Path) -> None:
    """A face's values come before the server's; it is listed, found by its name in a path, and a key's own."""
    keys = tmp_path / "keys"
    keys.write_text("all-models\nsome-models models=code\n")
    every, some = "Authorization: Bearer all-models", "Authorization: Bearer some-models"
    async with answering(OK) as up:
        unit = target("m", up.port, faces=FACES, request_defaults={"temperature": 0.7, "top_k": 5})
        names = dict.fromkeys(("m", *FACES), ("m",))
        routes = table(unit, names=names, front=front_unit(api_key_file=str(keys)))
        async with running(Front(routes, FakeFleet())) as port:
            for model in ("m", THINKS, "code"):
                await ask(port, post({"model": model, "seed": 1}, "/v1/chat/completions", every))
            refused = await ask(port, post({"model": THINKS}, "/v1/chat/completions", some))
            allowed = await ask(port, post({"model": "code"}, "/v1/chat/completions", some))
            listed = (await ask(port, get("/v1/models", every))).json()["data"]
            own = (await ask(port, get("/v1/models", some))).json()["data"]
            one = (await ask(port, get("/v1/models/org%2Fmodel-1.5%3Athinking", every))).json()
            plain = (await ask(port, get(f"/v1/models/{THINKS}", every))).json()
    bodies = [json.loads(request.body) for request in up.requests[:3]]
    assert bodies == [
        {"model": "m", "seed": 1, "temperature": 0.7, "top_k": 5},
        {"model": THINKS, "seed": 1, "temperature": 0.7, "top_k": 5, "thinking": True},
        {"model": "code", "temperature": 0.1, "top_k": 5},
    ]
    assert (refused.code, allowed.status) == ("model_not_allowed", 200)
    assert [m["id"] for m in listed] == ["m", THINKS, "code"]
    assert [m["id"] for m in own] == ["m", "code"]
    assert one == plain == listed[1]
    assert (one["face_of"], one["description"]) == ("m", "thinks first")


async def test_a_server_by_its_id(tmp_path: Path) -> None:
    """It is listed once, by its id; a key may name that; the process's name says who answered."""
    keys = tmp_path / "keys"
    keys.write_text("of-a-client models=org/m:q4\n")
    key = "Authorization: Bearer of-a-client"
    async with answering(OK) as up:
        unit = target("org-m-q4", up.port, id="org/m:q4", aliases=("org/m:q4", "other"))
        routes = table(unit, front=front_unit(api_key_file=str(keys), list_aliases=True))
        async with running(Front(routes, FakeFleet())) as port:
            got = await ask(port, post({"model": "org/m:q4"}, "/v1/chat/completions", key))
            refused = await ask(port, post({"model": "other"}, "/v1/chat/completions", key))
            listed = (await ask(port, get("/v1/models", key))).json()["data"]
    assert (got.status, got.headers["x-launch-server"], refused.code) == (200, "org-m-q4", "model_not_allowed")
    assert [m["id"] for m in listed] == ["org/m:q4"]
