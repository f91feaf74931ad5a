"""Run by a Python that has the public clients: `python_clients.py URL MODEL EMBEDDER OLLAMA ONLY`.

Of an answer it says the kind and what must be the same whoever writes it; of an error its class, status and code.
Printed as JSON, of calls in whose names ONLY is. EMBEDDER: the URL of the model `EMBED`; OLLAMA: a front that answers
as an Ollama, which llama-server does not.
"""

# a program of another environment: each client is imported where it is used

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

URL, MODEL, EMBEDDER, OLLAMA, ONLY = sys.argv[1:]
EMBED = "org/embed"
KEY = "not-needed"
os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "DO_NOT_TRACK": "1", "PYDANTIC_AI_NO_TELEMETRY": "1"}
HELLO = [{"role": "user", "content": "Say hello."}]
LONG = [{"role": "user", "content": "word " * 1500}]


def openai() -> dict[str, Callable[[], Any]]:
    """OpenAI's own."""
    import openai

    client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
    chat: Any = client.chat.completions.create

    def stream() -> Any:
        parts = list(
            chat(model=MODEL, messages=HELLO, max_tokens=8, stream=True, stream_options={"include_usage": True})
        )
        return [parts[-1].usage.prompt_tokens, any(p.choices and p.choices[0].delta.content for p in parts)]

    return {
        "chat": lambda: (
            (r := chat(model=MODEL, messages=HELLO, max_tokens=8))
            and [bool(r.choices[0].message.content), r.usage.prompt_tokens]
        ),
        "stream": stream,
        "completion": lambda: bool(client.completions.create(model=MODEL, prompt="Once", max_tokens=4).choices[0].text),
        "response": lambda: (
            client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=8).output[0].type
        ),
        "models": lambda: [(m.id, m.object) for m in client.models.list() if m.id == MODEL],
        "too long": lambda: chat(model=MODEL, messages=LONG),
        "wrong": lambda: chat(model=MODEL, messages="none"),
        "n/a": lambda: client.embeddings.create(model=MODEL, input="a"),
    }


def anthropic() -> dict[str, Callable[[], Any]]:
    """Anthropic's own."""
    import anthropic

    client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
    ask: Any = client.messages.create

    def stream() -> Any:
        with client.messages.stream(model=MODEL, messages=HELLO, max_tokens=8) as events:  # type: ignore[arg-type]
            return bool(events.get_final_text())

    return {
        "message": lambda: (r := ask(model=MODEL, messages=HELLO, max_tokens=8)) and r.content[0].type,
        "stream": stream,
        "count": lambda: client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens,  # type: ignore[arg-type]
        "too long": lambda: ask(model=MODEL, messages=LONG, max_tokens=8),
    }


def langchain() -> dict[str, Callable[[], Any]]:
    """LangChain, over both APIs."""
    from langchain_anthropic import ChatAnthropic
    from langchain_openai import ChatOpenAI

    gpt: Any = ChatOpenAI(base_url=f"{URL}/v1", api_key=KEY, model=MODEL, max_tokens=8, max_retries=0)  # type: ignore[call-arg,arg-type]
    claude: Any = ChatAnthropic(base_url=URL, api_key=KEY, model=MODEL, max_tokens=8, max_retries=0)  # type: ignore[call-arg,arg-type]
    return {
        "chat": lambda: bool(gpt.invoke("Say hello.").content),
        "stream": lambda: any(part.content for part in gpt.stream("Say hello.")),
        "message": lambda: bool(claude.invoke("Say hello.").content),
    }


def litellm() -> dict[str, Callable[[], Any]]:
    """LiteLLM, over three APIs; its errors are those that it maps the servers' to."""
    import litellm

    litellm.telemetry, litellm.suppress_debug_info = False, True
    common: dict[str, Any] = {"messages": HELLO, "api_key": KEY, "max_tokens": 8, "num_retries": 0}
    gpt: dict[str, Any] = common | {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1"}

    def stream() -> Any:
        parts = list(litellm.completion(**gpt, stream=True, stream_options={"include_usage": True}))
        return [any(p.choices and p.choices[0].delta.content for p in parts), parts[-1].usage.prompt_tokens]

    return {
        "chat": lambda: (
            (r := litellm.completion(**gpt)) and [bool(r.choices[0].message.content), r.usage.prompt_tokens]
        ),
        "stream": stream,
        "message": lambda: bool(
            litellm.completion(**common, model=f"anthropic/{MODEL}", api_base=URL).choices[0].message.content
        ),
        "schema": lambda: ends(litellm.completion(**gpt | {"max_tokens": 64}, response_format=sure())),
        "embedding": lambda: len(
            litellm.embedding(model=f"openai/{EMBED}", api_base=f"{EMBEDDER}/v1", api_key=KEY, input=["a word"]).data[
                0
            ]["embedding"]
        ),
        "too long": lambda: litellm.completion(**gpt | {"messages": LONG}),
        "wrong": lambda: litellm.completion(**gpt | {"temperature": "hot"}),
    }


def llama_index() -> dict[str, Callable[[], Any]]:
    """LlamaIndex: its chat model and its embeddings for servers like OpenAI's."""
    from llama_index.core.llms import ChatMessage
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding
    from llama_index.llms.openai_like import OpenAILike

    server: dict[str, Any] = {"api_base": f"{URL}/v1", "api_key": KEY, "max_retries": 0}
    model: Any = OpenAILike(model=MODEL, is_chat_model=True, max_tokens=8, **server)
    plain: Any = OpenAILike(model=MODEL, is_chat_model=False, max_tokens=4, **server)
    embed: Any = OpenAILikeEmbedding(EMBED, api_base=f"{EMBEDDER}/v1", api_key=KEY, max_retries=0)
    hello, long = ([ChatMessage(**m) for m in messages] for messages in (HELLO, LONG))
    return {
        "chat": lambda: bool(model.chat(hello).message.content),
        "stream": lambda: any(part.delta for part in model.stream_chat(hello)),
        "completion": lambda: bool(plain.complete("Once").text),
        "embeddings": lambda: [len(v) for v in embed.get_text_embedding_batch(["a word", "another"])],
        "too long": lambda: model.chat(long),
    }


def sure() -> Any:
    """What an answer must be, in so few tokens that no model can be cut short."""
    from pydantic import BaseModel

    class Sure(BaseModel):
        """Whether it is so."""

        yes: bool

    return Sure


def instructor() -> dict[str, Callable[[], Any]]:
    """Instructor: typed answers, by a tool and by a schema."""
    import instructor
    import openai

    def typed(mode: Any, **asked: Any) -> Any:
        client: Any = instructor.from_openai(openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0), mode=mode)
        asked = {"model": MODEL, "messages": HELLO, "max_tokens": 64, "max_retries": 0, "temperature": 0} | asked
        return type(client.chat.completions.create(response_model=sure(), **asked).yes).__name__

    return {
        "tool": lambda: typed(instructor.Mode.TOOLS),
        "schema": lambda: typed(instructor.Mode.JSON_SCHEMA),
        "too long": lambda: typed(instructor.Mode.TOOLS, messages=LONG),
    }


def pydantic_ai() -> dict[str, Callable[[], Any]]:
    """Pydantic AI, over both APIs: text, a stream, typed answers."""
    import anthropic
    from pydantic_ai import Agent, NativeOutput, ToolOutput
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    gpt = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY))
    theirs: Any = anthropic.AsyncAnthropic(base_url=URL, api_key=KEY, max_retries=0)
    claude = AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=theirs))

    def run(model: Any, prompt: str = "Say hello.", max_tokens: int = 8, **options: Any) -> Any:
        agent: Any = Agent(model, retries=0, model_settings={"max_tokens": max_tokens, "temperature": 0}, **options)
        return asyncio.run(agent.run(prompt)).output

    async def stream() -> Any:
        agent: Any = Agent(gpt, model_settings={"max_tokens": 8})
        async with agent.run_stream("Say hello.") as answer:
            return [bool("".join([part async for part in answer.stream_text(delta=True)])), answer.usage.input_tokens]

    return {
        "chat": lambda: bool(run(gpt)),
        "stream": lambda: asyncio.run(stream()),
        "message": lambda: bool(run(claude)),
        "tool": lambda: type(run(gpt, max_tokens=64, output_type=ToolOutput(sure())).yes).__name__,
        "schema": lambda: type(run(gpt, max_tokens=64, output_type=NativeOutput(sure())).yes).__name__,
        "too long": lambda: run(gpt, LONG[0]["content"]),
    }


def ends(answer: Any) -> str:
    """Why a whole answer ended."""
    return str(answer.choices[0].finish_reason)


def ollama() -> dict[str, Callable[[], Any]]:
    """Ollama's own."""
    import ollama

    client = ollama.Client(host=OLLAMA)
    options = {"num_predict": 8}

    def chat() -> Any:
        said = client.chat(MODEL, HELLO, options=options)
        return [said.done, bool(said.message.content), said.prompt_eval_count]

    return {
        "list": lambda: [m.model for m in client.list().models],
        "show": lambda: client.show(MODEL).capabilities,
        "chat": chat,
        "stream": lambda: any(part.message.content for part in client.chat(MODEL, HELLO, options=options, stream=True)),
        "generate": lambda: bool(client.generate(MODEL, "Once", options=options).response),
        "embed": lambda: [len(v) > 0 for v in client.embed(EMBED, ["a word", "another"]).embeddings],
        "too long": lambda: client.chat(MODEL, LONG),
        "nobody": lambda: client.chat("nobody", HELLO),
    }


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gave, or how it failed."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001  # how it fails is what is compared
        return [type(error).__name__, getattr(error, "status_code", None), getattr(error, "code", None)]


def main() -> None:
    """Every client, every call."""
    found = {}
    for client in (openai, anthropic, langchain, litellm, llama_index, instructor, pydantic_ai, ollama):
        found |= {f"{client.__name__}: {name}": outcome(call) for name, call in client().items() if ONLY in name}
    sys.stdout.write(f"\n{json.dumps(found)}\n")


main()
