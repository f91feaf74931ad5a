"""The public clients get from the front what they get from llama-server itself, call by call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.route import Front, StaticUpstreams
from tests.late import Late
from tests.route.calls import CALLS, MORE, Call, Clients
from tests.route.fleet import running, table, target
from tests.tinymodels import PROJECTORS
from tests.tinymodels.running import RunningServer

anthropic = Late("anthropic")
openai = Late("openai")

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("conformance")]

VOLATILE = frozenset({"id", "created", "created_at", "completed_at", "timings", "cached_tokens", "item_id", "call_id"})
VOLATILE_ANTHROPIC = frozenset({"cache_read_input_tokens", "tool_use_id"})


@pytest.fixture(scope="module")
def servers(llama: int, llama_server: Path, tiny_models: Callable[..., Path]) -> Iterator[dict[str, int]]:
    """Ports of real servers: chat, an embedder, a reranker and one that sees."""
    small = ("-c", "512", "-np", "1", "-t", "1")
    files = ("-m", tiny_models("qwen2vl"), "--mmproj", tiny_models(PROJECTORS["qwen2vl"]))
    bert = ("-m", tiny_models("bert"))
    with (
        RunningServer(llama_server, *bert, "--embeddings", *small) as embedder,
        RunningServer(llama_server, *files, "-c", "1024", "-np", "1", "-t", "1") as seeing,
    ):
        yield {"smol": llama, "embedder": embedder.port, "seeing": seeing.port}


@pytest.fixture
async def both(servers: dict[str, int]) -> AsyncIterator[dict[str, tuple[Clients, Clients]]]:
    """By server: clients that ask it directly, and clients that ask the front."""
    seen = ("text", "image")
    units = [target(n, port, **({"modalities": seen} if n == "seeing" else {})) for n, port in servers.items()]
    async with running(Front(table(*units), StaticUpstreams())) as port:
        through = Clients(f"http://127.0.0.1:{port}")
        direct = {name: Clients(f"http://127.0.0.1:{own}") for name, own in servers.items()}
        try:
            yield {name: (clients, through) for name, clients in direct.items()}
        finally:
            for clients in (through, *direct.values()):
                await clients.close()


def steady(value: Any) -> Any:
    """`value` without ids, times and the state of a cache."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        return {k: steady(v) for k, v in value.items() if k not in VOLATILE | VOLATILE_ANTHROPIC}
    if isinstance(value, list | tuple):
        return [steady(v) for v in value]
    return value


async def outcome(call: Call, clients: Clients) -> tuple[str, Any]:
    """What a call comes to: its result, or the class and content of the client's error."""
    try:
        return "ok", steady(await call(clients))
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        return type(error).__name__, (error.status_code, steady(error.body))
    except (openai.APIConnectionError, anthropic.APIConnectionError) as error:
        return type(error).__name__, None


@pytest.mark.parametrize("name", [*CALLS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
async def test_same_as_direct(name: str, both: dict[str, tuple[Clients, Clients]]) -> None:
    """The same result, or the same error with the same content."""
    server, call = (CALLS | MORE)[name]
    direct, through = both[server]
    if name.startswith("messages"):
        # Anthropic's API has no switch for the prompt cache: let both find it full. Not by the direct client, whose
        # connection llama-server closes after a stream without having said so.
        await outcome(call, through)
    expected = await outcome(call, direct)
    assert await outcome(call, through) == expected
