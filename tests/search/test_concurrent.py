from __future__ import annotations

import pytest

from search.work.concurrent import run_concurrently
from search.work.stopping import StopRequest


def test_the_first_error_stops_all_and_is_raised_when_they_have_stopped() -> None:
    stop, ended = StopRequest(), []

    def work() -> None:
        if not ended:
            ended.append("first")
            raise ValueError("first")
        stop.wait(60)
        ended.append("other")
        raise ValueError("other")

    with pytest.raises(ValueError, match="first"):
        run_concurrently(3, work, stop)
    assert ended == ["first", "other", "other"]
    assert stop.asked
    assert stop.signal is None
