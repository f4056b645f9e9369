"""The operations of one mount, put together; objfs/mount/mount.py runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from objfs.mount.content import ContentOperations
from objfs.mount.pinning import PinRenewal
from objfs.mount.state import MountState

if TYPE_CHECKING:
    from engine.store import Store


class Operations(ContentOperations):
    """One per mount. `state` is shared with the follower of the change feed."""

    supports_dot_lookup = False
    enable_writeback_cache = False  # S3 writes too: the kernel must not think it alone does
    enable_acl = False

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.state = MountState(store)
        self._open = {}
        self.pin_renewal = PinRenewal(store, self._open)
        self._listings = {}
        self._next_listing = 0
