"""Relay health counters for the metrics endpoint."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from storage.tracking.lease import LEASE_SECONDS, RelayLease


@dataclass
class RelayHealth:
    """Health of a relay, which updates it while another thread reads it. Times are ``time.monotonic()``.

    Attributes
    ----------
    delivered
        Rows that MLflow has accepted.
    errors
        Passes that failed because of the tracking server or the database.
    last_delivery
        Time of the last accepted rows, if there were any.
    last_pass
        End of the last pass over the outbox, successful or not; before the first pass, start of the relay.
    lease
        The lease of the relay, while it has one.
    """

    delivered: int = 0
    errors: int = 0
    last_delivery: float | None = None
    last_pass: float = field(default_factory=time.monotonic)
    lease: RelayLease | None = None

    @property
    def well(self) -> bool:
        """Whether the relay certainly holds the lease, which it renews in each pass and with each batch."""
        return self.lease is not None and time.monotonic() - self.lease.renewed < LEASE_SECONDS

    def passed(self, delivered: int) -> None:
        """Count a successful pass, and the rows that it delivered."""
        self.last_pass = time.monotonic()
        if delivered:
            self.delivered += delivered
            self.last_delivery = self.last_pass

    def failed(self) -> None:
        """Count a failed pass."""
        self.last_pass = time.monotonic()
        self.errors += 1
