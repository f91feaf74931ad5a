"""Run by a Python that has the public clients: `python_clients.py URL MODEL` prints what each of them gets, as JSON.

Of an answer it says the kind and what must be the same whoever writes it; of an error its class, status and code.
"""

# a program of another environment: each client is imported where it is used

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

URL, MODEL = sys.argv[1], sys.argv[2]
KEY = "not-needed"
HELLO = [{"role": "user", "content": "Say hello."}]
LONG = [{"role": "user", "content": "word " * 3000}]


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
        "models": lambda: [(m.id, m.object) for m in client.models.list()],
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
            return [bool(events.get_final_text()), events.get_final_message().usage.input_tokens]

    return {
        "message": lambda: (
            (r := ask(model=MODEL, messages=HELLO, max_tokens=8)) and [r.content[0].type, r.usage.input_tokens]
        ),
        "stream": stream,
        "count": lambda: client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens,  # type: ignore[arg-type]
        "too long": lambda: ask(model=MODEL, messages=LONG, max_tokens=8),
    }


def litellm() -> dict[str, Callable[[], Any]]:
    """LiteLLM, which has classes of its own for errors."""
    import litellm

    litellm.suppress_debug_info = True

    def ask(messages: Any, **more: Any) -> Any:
        return litellm.completion(
            f"openai/{MODEL}", messages, api_base=f"{URL}/v1", api_key=KEY, max_tokens=8, num_retries=0, **more
        )

    return {
        "chat": lambda: bool(ask(HELLO).choices[0].message.content),
        "stream": lambda: any(part.choices[0].delta.content for part in ask(HELLO, stream=True)),
        "too long": lambda: ask(LONG),
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


def llama_index() -> dict[str, Callable[[], Any]]:
    """LlamaIndex."""
    from llama_index.llms.openai_like import OpenAILike

    model: Any = OpenAILike(
        model=MODEL, api_base=f"{URL}/v1", api_key=KEY, is_chat_model=True, max_tokens=8, max_retries=0
    )
    return {
        "chat": lambda: bool(model.complete("Say hello.").text),
        "stream": lambda: any(part.delta for part in model.stream_complete("Say hello.")),
    }


def structured() -> dict[str, Callable[[], Any]]:
    """Instructor and Pydantic AI: answers of a shape."""
    import instructor
    import openai
    from pydantic import BaseModel, conint
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class Answer(BaseModel):
        yes: bool
        how_many: conint(ge=0, le=9)  # type: ignore[valid-type]

    client = instructor.from_openai(openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY), mode=instructor.Mode.JSON_SCHEMA)
    agent: Any = Agent(OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY)))
    ask: Any = client.chat.completions.create
    return {
        "instructor": lambda: type(ask(model=MODEL, messages=HELLO, response_model=Answer, max_tokens=200)).__name__,
        "pydantic_ai": lambda: bool(agent.run_sync("Say hello.", model_settings={"max_tokens": 8}).output),
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
    for client in (openai, anthropic, litellm, langchain, llama_index, structured):
        found |= {f"{client.__name__}: {name}": outcome(call) for name, call in client().items()}
    sys.stdout.write(json.dumps(found))


main()
