"""What the door tells its operator: /_objfs/health and /_objfs/metrics, without a signer.

A small Starlette application beside the S3 one. Neither endpoint shows names, keys or
content. `_objfs` is no valid bucket name, so nothing of S3's is hidden by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.errors import StoreError
from gateway.metrics import CONTENT_TYPE, Metrics

if TYPE_CHECKING:
    from engine.store import Store

PREFIX = b"/_objfs/"
_ANSWER_SECONDS_MAX = 5.0


def service_app(store: Store, metrics: Metrics) -> Starlette:
    async def health(request: Request) -> Response:
        """200 when the index answers and the keymap follows it."""
        try:
            with anyio.fail_after(_ANSWER_SECONDS_MAX):
                await store.freshen()
            applied = store.keymap.applied_lsn()
        except (StoreError, TimeoutError) as error:
            reason = str(error) or "the index does not answer"
            return JSONResponse({"status": "unavailable", "reason": reason}, 503, {"Retry-After": "1"})
        return JSONResponse({"status": "ok", "applied_lsn": applied})

    async def render(request: Request) -> Response:
        return Response(metrics.render(store.keymap.counters()), headers={"Content-Type": CONTENT_TYPE})

    return Starlette(
        routes=[Route("/_objfs/health", health), Route("/_objfs/metrics", render)],
        exception_handlers={HTTPException: _refuse},
    )


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for nothing else"
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
