"""The control API does what its own OpenAPI document says: asked by schemathesis over every operation."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from launcher.route import control_app
from tests.route.test_api import Recorded

schema = schemathesis.openapi.from_asgi("/v1/launch/openapi.json", control_app(Recorded()))


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.timeout(60)
def test_nothing_undocumented_is_answered(case: schemathesis.Case) -> None:
    """Status codes, content types and bodies are the documented ones, whatever is sent."""
    case.call_and_validate()
