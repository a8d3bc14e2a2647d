"""Numbers about the service, for Prometheus, summed over its workers.

In: what requests and batches report.
Out: Prometheus' text format. Workers write their numbers into files in PROMETHEUS_MULTIPROC_DIR,
which must be set before this module is imported; any worker reads them all. Without it the numbers
are those of this process. No label has a value that came from a request.
"""

import os
from contextlib import suppress
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The service's counters. One object a process, or, in tests, one an app."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own = {"registry": self._registry}
        self._requests = Counter(
            "storyflower_requests", "Requests by path and HTTP status", ("path", "status"), **own
        )
        self._seconds = Histogram(
            "storyflower_request_seconds",
            "From the request's head to the end of its answer",
            ("path",),
            buckets=SECONDS,
            **own,
        )
        self._texts = Histogram(
            "storyflower_batch_texts", "Texts that were scored in one call", buckets=TEXTS, **own
        )
        self._batch_seconds = Histogram(
            "storyflower_batch_seconds", "Duration of one scoring call", buckets=SECONDS, **own
        )
        self._waiting = Gauge(
            "storyflower_waiting_requests",
            "Requests that wait or are being computed",
            multiprocess_mode="livesum",
            **own,
        )

    # A number that cannot be kept, as when something has cleaned the folder, costs no answer.

    def request(self, path: str, status: int, seconds: float) -> None:
        with suppress(OSError, ValueError):
            self._requests.labels(path, str(status)).inc()
            self._seconds.labels(path).observe(seconds)

    def batch(self, texts: int, seconds: float) -> None:
        with suppress(OSError, ValueError):
            self._texts.observe(texts)
            self._batch_seconds.observe(seconds)

    def waiting(self, requests: int) -> None:
        with suppress(OSError, ValueError):
            self._waiting.set(requests)

    def text(self) -> bytes:
        """All workers' numbers in Prometheus' text format."""
        folder = os.environ.get(FOLDER)
        if not folder:
            return generate_latest(self._registry)
        for file in Path(folder).glob("gauge_live*.db"):
            # A worker that was killed waits for nothing any more; what it counted stays.
            if not psutil.pid_exists(process := int(file.stem.rpartition("_")[2])):
                mark_process_dead(process)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)
