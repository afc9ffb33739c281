"""A histogram of durations, for metrics.

Used for events that happen at every token, where the lock and labels of Prometheus' own histogram
would cost more than the counting. Runs on the event loop.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class Histogram:
    """Counts durations of one kind, in seconds, in buckets."""

    def __init__(self, name: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.bounds = (*bounds, float("inf"))
        self.counts = [0] * len(self.bounds)
        self._seconds = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """Count a duration of `seconds` seconds `times` times."""
        self.counts[bisect_left(self.bounds, seconds)] += times
        self._seconds += seconds * times

    def family(self, labels: Sequence[str] = ()) -> HistogramMetricFamily:
        """Return an empty Prometheus metric, to which `add_to` adds the counts of a histogram.

        Several histograms with the same name can be added. `labels` are the names of the labels.
        """
        words = f"Seconds of {self.name.replace('_', ' ')}"
        return HistogramMetricFamily(f"jaxllama_{self.name}_seconds", words, labels=labels)

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str] = ()) -> None:
        """Add this histogram to the metric `family`, with `labels` as the values of its labels."""
        bounds = map(floatToGoString, self.bounds)
        buckets = list(zip(bounds, accumulate(self.counts), strict=True))
        family.add_metric(labels, buckets, self._seconds)
