"""Which worker answers a request for `auto`, and how strictly the answer is validated. Pure.

In this order: the task type that the client names, the rules, the router, the front door.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from launcher.base.decoding import decoded
from launcher.ir.config import ValidationPolicy
from launcher.ir.exchange import Refusal
from launcher.orchestrate.context import Message, Piece, Prompt, constrained
from launcher.orchestrate.settings import POLICIES, Orchestration

Source = Literal["named", "task_type", "rule", "router", "front_door"]
DECISION_TOKENS = 200
"""Limit of tokens for the router's answer."""
_READ_CHARACTERS = 32_000
"""Characters of a request that the rules read: each of their words takes 0.3 s for a million."""
_ROUTED_CHARACTERS = 4000
"""Characters of a request that the router reads: its beginning and its end say what it is about."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The worker that answers, and why. `policy` None: not decided. `why`: why an earlier source did not decide."""

    model: str
    domain: str = ""
    policy: ValidationPolicy | None = None
    confidence: float = 1.0
    source: Source
    why: str = ""

    def header(self) -> str:
        """The value of its response header."""
        fields = {
            "domain": self.domain,
            "model": self.model,
            "policy": self.policy or "none",
            "confidence": f"{self.confidence:g}",
            "source": self.source,
            "why": self.why,
        }
        return "; ".join(f"{key}={value}" for key, value in fields.items() if value)


def by_task_type(settings: Orchestration, task_type: str) -> Decision:
    """The pool that serves the task type named by the client. Raises Refusal."""
    if task_type not in settings.worker_of:
        known = ", ".join(sorted(settings.worker_of)) or "none"
        message = f"no pool serves the task type {task_type[:100]!r}; known are {known}"
        raise Refusal(400, "unknown_task_type", message)
    return Decision(model=settings.worker_of[task_type], domain=task_type, source="task_type")


def by_rules(settings: Orchestration, text: str, allowed: Callable[[str], bool]) -> Decision | None:
    """The first rule that has a word of `text` and a worker that may be asked; of a long text both ends are read."""
    text = _both_ends(text, _READ_CHARACTERS)
    for rule in settings.config.rules:
        model = rule.model or settings.worker_of.get(rule.domain)
        if model and any(_contains(text, word) for word in rule.words) and allowed(model):
            return Decision(model=model, domain=rule.domain, policy=rule.policy, source="rule")
    return None


def _contains(text: str, word: str) -> bool:
    """Whether `text` has `word` as a whole word, in any case."""
    return bool(word) and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


TOO_SLOW = ("router_timeout", "router_resting")
"""Reasons for the front door where the router is too slow: then no default validation is added to the work."""


def front_door(settings: Orchestration, why: str, allowed: Callable[[str], bool]) -> Decision:
    """The default worker where nothing else decided. Raises Refusal where no worker may be asked."""
    for model in (settings.front_door, *settings.workers):
        if model and allowed(model):
            policy = settings.front_door_policy if model == settings.front_door else None
            policy = policy or ("none" if why in TOO_SLOW else None)
            return Decision(model=model, policy=policy, confidence=0.0, source="front_door", why=why)
    raise Refusal(403, "model_not_allowed", "this API key may ask none of the workers", param="model")


def parse_decision(text: str, settings: Orchestration, workers: tuple[str, ...]) -> Decision | None:
    """The router's answer, checked against its schema; None where it does not match."""
    found = decoded(text, _Answer)
    if found is None or found.domain not in settings.domains or found.recommended_model not in workers:
        return None
    if found.validation_policy not in POLICIES or not 0 <= found.confidence <= 1:
        return None
    return Decision(
        model=found.recommended_model,
        domain=found.domain,
        policy=found.validation_policy,
        confidence=found.confidence,
        source="router",
    )


class RouterBackoff:
    """Whether to ask the router: after a timeout it rests, and then a single request tries whether it is back.

    `rest_s`: seconds of rest.
    """

    def __init__(self, rest_s: float) -> None:
        self._rest_s = rest_s
        self._asked_again_at = 0.0

    def asks(self, now: float) -> bool:
        """Whether a request may ask at `now` (monotonic clock); the first one after a rest starts another rest."""
        if now < self._asked_again_at:
            return False
        if self._asked_again_at:
            self._asked_again_at = now + self._rest_s
        return True

    def observed(self, now: float, *, late: bool) -> None:
        """Report the outcome of asking the router."""
        self._asked_again_at = now + self._rest_s if late else 0.0


class _Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    domain: str
    recommended_model: str
    validation_policy: Literal["none", "final", "block_by_block"]
    confidence: float


def policy_of(settings: Orchestration, decision: Decision, requested: str | None) -> ValidationPolicy:
    """How an answer is validated: by the request, its model, its domain or the router, in this order; or the default.

    Raises Refusal for a policy that does not exist, or that this fleet cannot serve.
    """
    if requested is not None:
        if requested not in POLICIES:
            message = f"there is no validation policy {requested[:100]!r}; known are {', '.join(POLICIES)}"
            raise Refusal(400, "unknown_policy", message)
        if requested != "none" and not settings.validator:
            raise Refusal(400, "policy_unsupported", "this fleet has no validator")
    if not settings.validator:
        return "none"
    asked: Any = requested or settings.model_policies.get(decision.model)
    if decision.source == "named":
        return asked or "none"
    policy: ValidationPolicy = (
        asked or settings.config.policies.get(decision.domain) or decision.policy or settings.validation.policy
    )
    return policy


def router_prompt(settings: Orchestration, text: str) -> Prompt:
    """The router's prompt for a request: all of its text, or ever less of its beginning and its end."""
    sizes = (_ROUTED_CHARACTERS // share for share in (1, 2, 4, 8))
    request = Piece(name="request", variants=tuple(_both_ends(text, size) for size in sizes), rank=0)

    def compose(shown: Sequence[tuple[str, str]]) -> list[Message]:
        asked = "".join(text for _, text in shown)
        prompt = settings.prompts.get(settings.router) or _ROUTER_PROMPT
        return [{"role": "system", "content": prompt}, {"role": "user", "content": asked}]

    return Prompt(pieces=(request,), compose=compose)


def _both_ends(text: str, size: int) -> str:
    """`text`, or as much of its beginning and its end as makes up `size` characters."""
    half = size // 2
    return text if len(text) <= size else f"{text[:half]}\n…\n{text[-half:]}"


def router_question(settings: Orchestration, messages: Sequence[Message], workers: tuple[str, ...]) -> dict[str, Any]:
    """The chat request for a decision among `workers`."""
    return constrained(messages, "decision", settings.schema(workers), DECISION_TOKENS)


_ROUTER_PROMPT = "Sort the request into one domain. Recommend one worker and one validation policy."
