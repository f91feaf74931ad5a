"""Every operation of the control API, for schemathesis: `test_openapi.py` has pytest run this file with its plugin."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from launcher.route import control_app
from tests.route.test_api import Recorded

schema = schemathesis.openapi.from_asgi("/v1/launch/openapi.json", control_app(Recorded()))


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.timeout(300)
def test_nothing_undocumented_is_answered(case: schemathesis.Case) -> None:
    """Status codes, content types and bodies are the documented ones, whatever is sent."""
    case.call_and_validate()
