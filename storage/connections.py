"""Connection pool for a PostgreSQL server that many workers share: a worker holds no connection while idle.

Transactions come in bursts, for example when a trial begins or a relay looks for work; a training sends
nothing for minutes. So the pool keeps a returned connection only for a moment.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from sqlalchemy.pool import ConnectionPoolEntry, NullPool
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from storage.database_errors import has_no_free_connection

IDLE_SECONDS: Final = 0.2
"""How long an idle connection is kept, s: longer than the gap between the transactions of a burst."""

LONGEST_SECONDS: Final = 2.0
"""Age from which a returned connection is closed, s: under load, other workers wait for it."""

PATIENCE: Final = 30.0
"""How long to wait for a free connection, s: shorter than a lease."""


class MomentaryPool(NullPool):
    """Keeps one connection for a moment after its transaction and closes all others at once.

    If the server has no free connection, the pool waits: other workers return theirs all the time.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        connect = self._invoke_creator
        self._invoke_creator = lambda record: _patience()(connect, record)
        self._guard = threading.Lock()
        self._kept: ConnectionPoolEntry | None = None
        self._since = 0.0
        self._watched = False

    def _do_get(self) -> ConnectionPoolEntry:
        return self._take() or self._create_connection()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        old = time.time() - getattr(record, "starttime", 0.0) > LONGEST_SECONDS
        if record.dbapi_connection is None or old:
            record.close()
            return
        with self._guard:
            spare, self._kept, self._since = self._kept, record, time.monotonic()
            if not self._watched:
                self._watched = True
                threading.Thread(target=self._close_idle, name="idle-connection", daemon=True).start()
        if spare is not None:
            spare.close()

    def dispose(self) -> None:
        if (idle := self._take()) is not None:
            idle.close()

    def _take(self) -> ConnectionPoolEntry | None:
        with self._guard:
            kept, self._kept = self._kept, None
        return kept

    def _close_idle(self) -> None:
        """Close the kept connection once it has been idle; return then, or when none is kept."""
        while True:
            time.sleep(IDLE_SECONDS)
            with self._guard:
                if self._kept is not None and time.monotonic() - self._since < IDLE_SECONDS:
                    continue
                idle, self._kept, self._watched = self._kept, None, False
            if idle is not None:
                idle.close()
            return


def _patience() -> Retrying:
    return Retrying(
        retry=retry_if_exception(has_no_free_connection),
        wait=wait_random_exponential(multiplier=0.05, max=1),
        stop=stop_after_delay(PATIENCE),
        reraise=True,
    )
