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


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gave, or how it failed."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001  # how it fails is what is compared
        return [type(error).__name__, getattr(error, "status_code", None), getattr(error, "code", None)]


def main() -> None:
    """Every client, every call."""
    found = {}
    for client in (openai, anthropic, langchain):
        found |= {f"{client.__name__}: {name}": outcome(call) for name, call in client().items()}
    sys.stdout.write(json.dumps(found))


main()
