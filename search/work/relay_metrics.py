"""Metrics of a relay for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from search.work.monitor import Health, serve
from storage.errors import DatabaseError
from storage.tracking.relay import backlog

if TYPE_CHECKING:
    from storage.studies import Study
    from storage.tracking.health import RelayHealth


class _RelayMetrics(Collector):
    """Collects values from the relay and the database at each request."""

    def __init__(self, study: Study, health: RelayHealth) -> None:
        self._study = study
        self._health = health

    def collect(self) -> Iterator[Metric]:
        health, now = self._health, time.monotonic()
        yield self._counter(
            "delivered_rows", "Rows of the outbox that were delivered to MLflow.", health.delivered
        )
        yield self._counter("errors", "Passes over the outbox that failed.", health.errors)
        yield self._gauge("pass_seconds", "Time since the last pass over the outbox.", now - health.last_pass)
        if health.last_delivery is not None:
            age = now - health.last_delivery
            yield self._gauge("delivery_seconds", "Time since the last delivery to MLflow.", age)
        if health.lease is not None:
            age = now - health.lease.renewed
            yield self._gauge("lease_seconds", "Time since the lease was last renewed.", age)
        try:
            left = backlog(self._study)
        except DatabaseError:
            return  # the other metrics show the problem
        yield self._gauge("waiting_rows", "Rows of the outbox that wait for delivery.", left.waiting)
        yield self._gauge("parked_rows", "Rows of the outbox that MLflow rejected.", left.rejected)

    def _counter(self, name: str, words: str, value: float) -> Metric:
        family = CounterMetricFamily(f"anitune_relay_{name}", words, labels=["study"])
        family.add_metric([self._study.name], value)
        return family

    def _gauge(self, name: str, words: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"anitune_relay_{name}", words, labels=["study"])
        family.add_metric([self._study.name], value)
        return family


@contextmanager
def serve_relay_metrics(host: str, port: int, study: Study, health: RelayHealth) -> Iterator[None]:
    """Serve metrics of the relay in the block; ``/health`` answers 503 if its lease has expired.

    Raises
    ------
    SearchError
        if the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(_RelayMetrics(study, health))

    def report() -> Health:
        now = time.monotonic()
        seconds = {"pass_seconds": now - health.last_pass}
        if health.lease is not None:
            seconds["lease_seconds"] = now - health.lease.renewed
        return Health(health.well, seconds)

    with serve(host, port, registry, report):
        yield
