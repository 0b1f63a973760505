"""What a relay did lately, for who watches it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from storage.tracking.lease import LEASE_SECONDS, RelayLease


@dataclass
class RelayHealth:
    """Told by a relay as it goes on; read from another thread. Times by ``time.monotonic()``.

    Attributes
    ----------
    delivered
        Rows that MLflow has taken.
    errors
        Passes that the tracking server or the database kept from coming to their end.
    last_delivery
        When rows were taken last, if any were.
    last_pass
        When a pass over the outbox ended last, well or not; before the first one, when the relay began.
    lease
        The right to deliver, while the relay has it.
    """

    delivered: int = 0
    errors: int = 0
    last_delivery: float | None = None
    last_pass: float = field(default_factory=time.monotonic)
    lease: RelayLease | None = None

    @property
    def well(self) -> bool:
        """Whether the lease is held for sure: the relay renews it in each pass, and with each batch."""
        return self.lease is not None and time.monotonic() - self.lease.renewed < LEASE_SECONDS

    def passed(self, delivered: int) -> None:
        """A pass came to its end, and MLflow has so many rows more."""
        self.last_pass = time.monotonic()
        if delivered:
            self.delivered += delivered
            self.last_delivery = self.last_pass

    def failed(self) -> None:
        """A pass did not come to its end."""
        self.last_pass = time.monotonic()
        self.errors += 1
