"""What the door tells its operator: /_objfs/health and /_objfs/metrics, without a signer.

Neither shows names, keys or content. `_objfs` is no valid bucket name, so nothing of S3's
is hidden by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import msgspec

from engine.errors import StoreError
from gateway.metrics import CONTENT_TYPE, Metrics
from gateway.request import Request
from gateway.responses import Response

if TYPE_CHECKING:
    from engine.store import Store

PREFIX = b"/_objfs/"
_ANSWER_SECONDS_MAX = 5.0
_JSON = {"Content-Type": "application/json"}


async def answer(store: Store, metrics: Metrics, request: Request) -> Response:
    if request.method not in ("GET", "HEAD"):
        return Response(405, {"Allow": "GET, HEAD"})
    if request.raw_path == PREFIX + b"health":
        return await _health(store)
    if request.raw_path == PREFIX + b"metrics":
        return Response(200, {"Content-Type": CONTENT_TYPE}, metrics.render(store.keymap.counters()))
    return Response(404, dict(_JSON), b'{"error":"not found"}')


async def _health(store: Store) -> Response:
    """200 when the index answers and the keymap follows it."""
    try:
        with anyio.fail_after(_ANSWER_SECONDS_MAX):
            await store.freshen()
        applied = store.keymap.applied_lsn()
    except (StoreError, TimeoutError) as error:
        body = msgspec.json.encode({"status": "unavailable", "reason": str(error) or "the index does not answer"})
        return Response(503, {**_JSON, "Retry-After": "1"}, body)
    return Response(200, dict(_JSON), msgspec.json.encode({"status": "ok", "applied_lsn": applied}))
