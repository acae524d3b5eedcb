"""Settings of hypothesis beside those of the suite's profile (tests/conftest.py)."""

from __future__ import annotations

from hypothesis import HealthCheck

SHARED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
"""For `suppress_health_check`, where all examples are to share the test's fixtures. It takes the
place of the profile's, so what that has is repeated."""
