"""Who answers a request for `auto`, and how strictly it is checked. Pure.

In order: the task type that the client names, the rules, the router, the front door.
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
"""Tokens that a decision may take."""
_READ_CHARACTERS = 32_000
"""How much of a request the rules read: each of their words takes 0.3 s for a million."""
_ROUTED_CHARACTERS = 4000
"""How much of a request the router reads: its beginning and its end say what it is about."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers, and why. `policy` None: nobody has said yet. `why` says why an earlier source did not decide."""

    model: str
    domain: str = ""
    policy: ValidationPolicy | None = None
    confidence: float = 1.0
    source: Source
    why: str = ""

    def header(self) -> str:
        """As a response header shows it."""
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
    """The pool that serves the task type a client names. Raises Refusal."""
    if task_type not in settings.worker_of:
        known = ", ".join(sorted(settings.worker_of)) or "none"
        message = f"no pool serves the task type {task_type[:100]!r}; known are {known}"
        raise Refusal(400, "unknown_task_type", message)
    return Decision(model=settings.worker_of[task_type], domain=task_type, source="task_type")


def by_rules(settings: Orchestration, text: str, allowed: Callable[[str], bool]) -> Decision | None:
    """The first rule that has a word of `text`, of a long one its beginning or end, and a worker that may be asked."""
    text = _both_ends(text, _READ_CHARACTERS)
    for rule in settings.config.rules:
        model = rule.model or settings.worker_of.get(rule.domain)
        if model and any(_contains(text, word) for word in rule.words) and allowed(model):
            return Decision(model=model, domain=rule.domain, policy=rule.policy, source="rule")
    return None


def _contains(text: str, word: str) -> bool:
    """Whether `word` stands in `text` as a word of its own, in whatever case."""
    return bool(word) and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


LATE = ("router_timeout", "router_resting")
"""Why the front door answers where the router is too slow: nothing is added to such a fleet's work."""


def front_door(settings: Orchestration, why: str, allowed: Callable[[str], bool]) -> Decision:
    """The default, when nobody decided, checked as what it serves is. Raises Refusal where nobody may be asked."""
    for model in (settings.front_door, *settings.workers):
        if model and allowed(model):
            policy = settings.front_door_policy if model == settings.front_door else None
            policy = policy or ("none" if why in LATE else None)
            return Decision(model=model, policy=policy, confidence=0.0, source="front_door", why=why)
    raise Refusal(403, "model_not_allowed", "this API key may ask none of the workers", param="model")


def parse_decision(text: str, settings: Orchestration, workers: tuple[str, ...]) -> Decision | None:
    """The router's answer, held against its schema; None where it is not by it."""
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


class Patience:
    """Whether the router is asked: once it was late it rests, and then one request alone finds out if it is back."""

    def __init__(self, rest_s: float) -> None:
        self._rest_s = rest_s
        self._asked_again_at = 0.0

    def asks(self, now: float) -> bool:
        """Whether a request may ask at `now` (monotonic); the first after a rest lets nobody else for as long again."""
        if now < self._asked_again_at:
            return False
        if self._asked_again_at:
            self._asked_again_at = now + self._rest_s
        return True

    def observed(self, now: float, *, late: bool) -> None:
        """What came of asking."""
        self._asked_again_at = now + self._rest_s if late else 0.0


class _Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    domain: str
    recommended_model: str
    validation_policy: Literal["none", "final", "block_by_block"]
    confidence: float


def policy_of(settings: Orchestration, decision: Decision, requested: str | None) -> ValidationPolicy:
    """How an answer is checked: as the request, its model, its domain, or the router says; else by default.

    Raises Refusal for a policy that does not exist, or cannot be had.
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
    """The router's prompt for a request: all of its text, or ever less from its beginning and its end."""
    sizes = (_ROUTED_CHARACTERS // share for share in (1, 2, 4, 8))
    request = Piece(name="request", variants=tuple(_both_ends(text, size) for size in sizes), rank=0)

    def compose(shown: Sequence[tuple[str, str]]) -> list[Message]:
        asked = "".join(text for _, text in shown)
        prompt = settings.prompts.get(settings.router) or _ROUTER_PROMPT
        return [{"role": "system", "content": prompt}, {"role": "user", "content": asked}]

    return Prompt(pieces=(request,), compose=compose)


def _both_ends(text: str, size: int) -> str:
    """`text`, or as much of its beginning and its end as makes `size` characters."""
    half = size // 2
    return text if len(text) <= size else f"{text[:half]}\n…\n{text[-half:]}"


def router_question(settings: Orchestration, messages: Sequence[Message], workers: tuple[str, ...]) -> dict[str, Any]:
    """The chat request for a decision among `workers`."""
    return constrained(messages, "decision", settings.schema(workers), DECISION_TOKENS)


_ROUTER_PROMPT = "Sort the request into one domain. Recommend one worker and one validation policy."
