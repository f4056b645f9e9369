"""Async tests run on trio and on asyncio."""

from __future__ import annotations

import pytest

from engine import limits

limits.RESERVE_BYTES_MAX = 1024 * 1024  # hundreds of stores are made and kept for a while


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)
