"""Metrics: counters, gauges and histograms at /metrics, in Prometheus' text form.

Made with the application. The service reports requests to it; gauges are read from the service when
a monitor asks. Has its own registry, so that two servers in one process do not mix.
"""

import asyncio
from collections.abc import Iterator, Sequence

import msgspec
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jaxllama.serve.histogram import Histogram
from jaxllama.serve.router_metrics import RouterMetrics
from jaxllama.serve.settings import VLLM
from jaxllama.service import GenerationService
from jaxllama.service.answers import Outcome

FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

GAUGES = {
    "queue_requests": "Answers that wait",
    "queue_tokens": "Prompt tokens that wait",
    "open_requests": "Requests whose client is still being served",
    "engine_waiting": "Answers that wait in the engine",
    "engine_filling": "Answers whose prompt is being read",
    "engine_running": "Answers being written",
    "slots_used": "Slots held",
    "slots": "Slots there are",
    "step_seconds": "One decode step, as last measured",
    "weight_bytes_per_second": "Weights read by decode steps, as last measured",
    "bandwidth_share": "Share of the device's memory bandwidth that this takes, if known",
    "flops_per_second": "Floating-point operations of decode steps, for the rows that run now, "
    "without attention",
    "flops_share": "Share of the device's dense bfloat16 operations that this takes, if known",
    "ready": "1 when requests are taken",
    "prompt_cache_bytes": "Memory of prompts kept beside the slots",
    "adapters": "LoRA adapters loaded",
    "programs_pending": "Programs still being compiled or loaded behind the requests",
}
COUNTERS = {
    "engine_steps": "Steps of the engine",
    "engine_step_seconds": "Time in steps of the engine",
    "programs_compiled": "Programs compiled",
    "programs_loaded": "Programs loaded from disk",
    "program_compile_seconds": "Time in compiling programs",
    "program_load_seconds": "Time in loading programs",
    "recompilations": "Programs compiled that the start had not planned; expected to stay 0",
    "prompt_cache_hits": "Prompts of which a part came back from the prompt cache",
    "prompt_cache_tokens": "Tokens that came back from the prompt cache",
    "prompt_cache_evictions": "Blocks dropped from the prompt cache to make room",
    "drafted_tokens": "Tokens that speculation drafted",
    "accepted_tokens": "Drafted tokens that became part of an answer",
    "faults": "Times a program failed and what was live was replayed",
}


class Waits(msgspec.Struct):
    """A histogram of waiting times, in seconds."""

    bounds: list[float]  # the upper bound of each bucket but the last, which has none
    counts: list[int]


class Metrics(Collector):
    """Observer of the service that collects metrics and exports them."""

    def __init__(
        self, service: GenerationService, names: Sequence[str] = (), bandwidth: float | None = None
    ) -> None:
        """Collect metrics of a service; with "vllm" in `names`, export vLLM's names as well.

        `bandwidth` is that of the device's memory in GB/s; None: as the table of chips has it.
        """
        self._service = service
        self._bandwidth = bandwidth
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "jaxllama_requests", "Requests that are over", ["route", "reason"], registry=registry
        )
        self._tokens = Counter(
            "jaxllama_tokens", "Tokens of requests that are over", ["kind"], registry=registry
        )
        self._hits = Counter(
            "jaxllama_prefix_hits", "Requests that began with cached tokens", registry=registry
        )
        self._first = Histogram("time_to_first_token", FIRST)
        self._between = Histogram("inter_token", BETWEEN)
        self._whole = Histogram("request", WHOLE)
        registry.register(self)
        if VLLM in names:
            registry.register(RouterMetrics(service))

    def waited(self, seconds: float, tokens: int, is_first: bool) -> None:
        """Record that a client waited `seconds` for the next `tokens` tokens of its answer.

        The first wait of an answer (`is_first`) is its time to the first token; the others give
        times between tokens.
        """
        if is_first:
            self._first.observe(seconds)
            self._between.observe(0.0, tokens - 1)
        else:
            self._between.observe(seconds / tokens, tokens)

    def ended(self, outcome: Outcome) -> None:
        """Count a request that has ended, with its tokens and duration."""
        self._requests.labels(outcome.route, outcome.reason).inc()
        self._tokens.labels("prompt").inc(outcome.prompt)
        self._tokens.labels("reused").inc(outcome.reused)
        self._tokens.labels("generated").inc(outcome.generated)
        if outcome.reused:
            self._hits.inc()
        self._whole.observe(outcome.seconds)

    @property
    def tokens(self) -> dict[str, float]:
        """Numbers of tokens of ended requests, by kind: prompt, reused, generated."""
        return counts_by(self._tokens, "kind")

    @property
    def requests(self) -> dict[str, float]:
        """Numbers of ended requests, by the reason of their end."""
        return counts_by(self._requests, "reason")

    @property
    def hits(self) -> float:
        """Number of requests whose prompt began with tokens that were in the KV cache."""
        return sum(counts_by(self._hits, "").values())

    @property
    def first(self) -> Waits:
        """The recorded times to the first token of an answer."""
        return waits_of(self._first)

    @property
    def between(self) -> Waits:
        """The recorded times between two tokens of an answer."""
        return waits_of(self._between)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text form."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield gauges and counters of the service, and the histograms, for the registry."""
        figures = self._service.figures()
        if self._bandwidth is not None and "weight_bytes_per_second" in figures:
            share = figures["weight_bytes_per_second"] / (self._bandwidth * 1e9)
            figures["bandwidth_share"] = share
        for name, words in GAUGES.items():
            if name in figures:
                yield GaugeMetricFamily(f"jaxllama_{name}", words, figures[name])
        for name, words in COUNTERS.items():
            if name in figures:
                yield CounterMetricFamily(f"jaxllama_{name}", words, figures[name])
        yield GaugeMetricFamily("jaxllama_tasks", "Tasks of the server's event loop", tasks())
        of_adapters = CounterMetricFamily(
            "jaxllama_adapter_requests", "Requests with a LoRA adapter", labels=["adapter"]
        )
        for name, count in self._service.adapter_requests().items():
            of_adapters.add_metric([name], count)
        yield of_adapters
        for histogram in (self._first, self._between, self._whole):
            yield histogram.family()


def counts_by(counter: Counter, label: str) -> dict[str, float]:
    """Return the values of a counter by the values of its label `label`.

    Values that differ only in other labels are added.
    """
    found: dict[str, float] = {}
    for metric in counter.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                key = sample.labels.get(label, "")
                found[key] = found.get(key, 0.0) + sample.value
    return found


def waits_of(histogram: Histogram) -> Waits:
    """Return the bounds and counts of a histogram's buckets."""
    return Waits(list(histogram.bounds[:-1]), list(histogram.counts))


def tasks() -> int:
    """Return the number of tasks of the running event loop; 0 if none runs in this thread."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
