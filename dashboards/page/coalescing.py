"""Share one computation among simultaneous requests for the same page."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Coalescing(Generic[T]):
    """Computes a value once for all callers that wait for it.

    A caller never gets the result of a computation that began before its call, which might miss what happened
    since. So callers that come during a computation wait for its end, and share the next one. No result is
    kept.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: dict[str, Future[T]] = {}
        self._next: dict[str, Future[T]] = {}

    def __call__(self, key: str, compute: Callable[[], T]) -> T:
        """The value of ``compute``, called here or by another thread with this key, after this call began.

        Raises
        ------
        Exception
            the exception of ``compute``, for all who shared it.
        """
        with self._lock:
            shared = self._next.get(key)
            before = self._running.get(key)
            mine = shared is None
            if shared is None:
                shared = self._next[key] = Future()
        if not mine:
            return shared.result()
        if before is not None:
            wait([before])
        with self._lock:
            self._running[key] = self._next.pop(key)
        try:
            shared.set_result(compute())
        except BaseException as error:
            shared.set_exception(error)
        finally:
            with self._lock:
                if self._running[key] is shared:
                    del self._running[key]
        return shared.result()
