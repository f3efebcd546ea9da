"""What a replica counts, as metrics of Ray: on each node's Prometheus page, with Ray's own."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable

from ray.util.metrics import Counter, Gauge, Histogram

from tidegate.serving.meter import Meter

PERIOD_S = 0.25
LATENCY_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
NAMES = (
    "tidegate_requests",
    "tidegate_rows",
    "tidegate_device_seconds",
    "tidegate_request_seconds",
    "tidegate_queue_seconds",
    "tidegate_batch_rows",
    "tidegate_waiting_requests",
    "tidegate_version",
)
"""As they are made; Ray puts `ray_` before each, and `_total` behind a counter."""


class Telemetry:
    """Publishes one endpoint's counts from this replica."""

    def __init__(self, endpoint: str, meter: Meter) -> None:
        self._meter = meter
        self._endpoint = {"endpoint": endpoint}
        by_tenant = ("endpoint", "tenant")
        self._requests = Counter("tidegate_requests", "Inference requests answered.", (*by_tenant, "status"))
        self._rows = Counter("tidegate_rows", "Rows that the model answered.", by_tenant)
        self._device = Counter("tidegate_device_seconds", "Seconds of passes, shared out by rows.", by_tenant)
        self._latency = Histogram(
            "tidegate_request_seconds", "From the last byte of a request to its answer.", LATENCY_BOUNDS_S, by_tenant
        )
        self._queue = Histogram("tidegate_queue_seconds", "Waiting for a pass.", LATENCY_BOUNDS_S, ("endpoint",))
        self._batch = Histogram("tidegate_batch_rows", "Rows of a pass.", BATCH_BOUNDS, ("endpoint",))
        self._waiting = Gauge("tidegate_waiting_requests", "Requests that no pass has taken yet.", ("endpoint",))
        self._version = Gauge("tidegate_version", "The model version that answers.", ("endpoint",))
        self._told: defaultdict[tuple[str, str], float] = defaultdict(float)

    async def run(self, waiting: Callable[[], int], version: Callable[[], int]) -> None:
        while True:
            self.publish(waiting(), version())
            await asyncio.sleep(PERIOD_S)

    def publish(self, waiting: int, version: int) -> None:
        """Tells Ray of what came since the last time."""
        for tenant, traffic in list(self._meter.traffic.items()):
            tags = {**self._endpoint, "tenant": tenant}
            for status, count in list(traffic.statuses.items()):
                self._grow(self._requests, count, {**tags, "status": str(status)})
            self._grow(self._rows, traffic.rows, tags)
            self._grow(self._device, traffic.device_seconds, tags)
        while self._meter.latencies:
            tenant, seconds = self._meter.latencies.popleft()
            self._latency.observe(seconds, {**self._endpoint, "tenant": tenant})
        while self._meter.queued:
            self._queue.observe(self._meter.queued.popleft(), self._endpoint)
        while self._meter.batches:
            self._batch.observe(self._meter.batches.popleft(), self._endpoint)
        self._waiting.set(waiting, self._endpoint)
        self._version.set(version, self._endpoint)

    def _grow(self, counter: Counter, total: float, tags: dict[str, str]) -> None:
        key = (counter.info["name"], str(sorted(tags.items())))
        more = total - self._told[key]
        if more > 0:
            counter.inc(more, tags)
            self._told[key] = total
