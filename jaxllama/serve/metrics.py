"""Metrics: counters, gauges and histograms at /metrics, in Prometheus' text form.

Made with the application. The service reports requests to it; gauges are read from the service when
a monitor asks. Has its own registry, so that two servers in one process do not mix.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jaxllama.serve.histogram import Histogram
from jaxllama.serve.router_metrics import RouterMetrics
from jaxllama.serve.settings import VLLM
from jaxllama.service.answers import Outcome
from jaxllama.service.served_models import ServedModel, ServedModels

FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

TOKENS = ("prompt", "reused", "generated")  # kinds of tokens that are counted

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


class RequestTally:
    """Observer of the requests of one model: it counts them, their tokens and their waits."""

    def __init__(self) -> None:
        self.ends: Counter[tuple[str, str]] = Counter()  # requests by route and reason
        self.tokens: Counter[str] = Counter()  # by kind: prompt, reused, generated
        self.hits = 0  # requests whose prompt began with tokens that were in the KV cache
        self.histograms = (
            Histogram("time_to_first_token", FIRST),
            Histogram("inter_token", BETWEEN),
            Histogram("request", WHOLE),
        )

    def waited(self, seconds: float, tokens: int, is_first: bool) -> None:
        """Record that a client waited `seconds` for the next `tokens` tokens of its answer.

        The first wait of an answer (`is_first`) is its time to the first token; the others give
        times between tokens.
        """
        first, between, _ = self.histograms
        if is_first:
            first.observe(seconds)
            between.observe(0.0, tokens - 1)
        else:
            between.observe(seconds / tokens, tokens)

    def ended(self, outcome: Outcome) -> None:
        """Count a request that has ended, with its tokens and duration."""
        self.ends[outcome.route, outcome.reason] += 1
        for kind in TOKENS:
            self.tokens[kind] += getattr(outcome, kind)
        self.hits += bool(outcome.reused)
        self.histograms[-1].observe(outcome.seconds)

    @property
    def requests(self) -> dict[str, float]:
        """Numbers of ended requests, by the reason of their end."""
        found: Counter[str] = Counter()
        for (_, reason), count in self.ends.items():
            found[reason] += count
        return dict(found)

    @property
    def first(self) -> Waits:
        """The recorded times to the first token of an answer."""
        return waits_of(self.histograms[0])

    @property
    def between(self) -> Waits:
        """The recorded times between two tokens of an answer."""
        return waits_of(self.histograms[1])


class Metrics(Collector):
    """All metrics of a server; with several models, a model's metrics have its name as a label."""

    def __init__(
        self, models: ServedModels, names: Sequence[str] = (), bandwidth: float | None = None
    ) -> None:
        """Prepare the metrics of the models.

        With "vllm" in `names`, metrics are also exported under vLLM's names. `bandwidth` is the
        memory bandwidth of the device in GB/s; None: the known value of its chip, if there is one.
        """
        self._models = models
        self._bandwidth = bandwidth
        self._labels = [] if models.is_single else ["model"]
        self._registry = registry = CollectorRegistry()
        self._tallies = {each.name: RequestTally() for each in models.all}
        registry.register(self)
        if VLLM in names:
            registry.register(RouterMetrics(models))

    def tally(self, name: str) -> RequestTally:
        """Return the object that counts the requests of the model with this name.

        Unloading the model and loading it again does not change the object.
        """
        return self._tallies[name]

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text form."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all models; Prometheus' registry calls this method."""
        yield from self._requests()
        yield from self._figures()
        yield GaugeMetricFamily("jaxllama_tasks", "Tasks of the server's event loop", tasks())
        if not self._models.is_single:
            yield from self._states()
        yield from self._adapters()
        for place in range(len(RequestTally().histograms)):
            histograms = {name: each.histograms[place] for name, each in self._tallies.items()}
            family = next(iter(histograms.values())).family(self._labels)
            for name, histogram in histograms.items():
                histogram.add_to(family, self._label(name))
            yield family

    def _label(self, name: str) -> list[str]:
        """Return the values of the label `model`: [name] if there are several models, else []."""
        return [name] if self._labels else []

    def _requests(self) -> Iterator[Metric]:
        """Yield the counters of requests that have ended."""
        requests = CounterMetricFamily(
            "jaxllama_requests",
            "Requests that are over",
            labels=[*self._labels, "route", "reason"],
        )
        tokens = CounterMetricFamily(
            "jaxllama_tokens", "Tokens of requests that are over", labels=[*self._labels, "kind"]
        )
        hits = CounterMetricFamily(
            "jaxllama_prefix_hits", "Requests that began with cached tokens", labels=self._labels
        )
        for name, tally in self._tallies.items():
            for ended, count in tally.ends.items():
                requests.add_metric([*self._label(name), *ended], count)
            for kind, count in tally.tokens.items():
                tokens.add_metric([*self._label(name), kind], count)
            hits.add_metric(self._label(name), tally.hits)
        yield from (requests, tokens, hits)

    def _figures(self) -> Iterator[Metric]:
        """Yield the gauges and counters that the service of each model reports."""
        figures = {each.name: self._figures_of(each) for each in self._models.all}
        kinds = ((GAUGES, GaugeMetricFamily), (COUNTERS, CounterMetricFamily))
        for table, kind in kinds:
            for name, words in table.items():
                family = kind(f"jaxllama_{name}", words, labels=self._labels)
                for model, found in figures.items():
                    if name in found:
                        family.add_metric(self._label(model), found[name])
                if family.samples:
                    yield family

    def _figures_of(self, model: ServedModel) -> dict[str, float]:
        figures = model.service.figures()
        if self._bandwidth is not None and "weight_bytes_per_second" in figures:
            share = figures["weight_bytes_per_second"] / (self._bandwidth * 1e9)
            figures["bandwidth_share"] = share
        return figures

    def _states(self) -> Iterator[Metric]:
        """Yield the metrics of models' states and memory, for a server with several models."""
        loaded = GaugeMetricFamily(
            "jaxllama_model_loaded", "1 while the model is loaded", labels=["model"]
        )
        users = GaugeMetricFamily(
            "jaxllama_model_users",
            "Requests that use the model or wait until it is loaded",
            labels=["model"],
        )
        memory = GaugeMetricFamily(
            "jaxllama_model_memory_bytes",
            "Memory that the model takes while it is loaded, as estimated",
            labels=["model"],
        )
        loads = CounterMetricFamily(
            "jaxllama_model_loads", "Times the model was loaded", labels=["model"]
        )
        for each in self._models.all:
            loaded.add_metric([each.name], each.is_loaded)
            users.add_metric([each.name], each.users)
            memory.add_metric([each.name], each.memory)
            loads.add_metric([each.name], each.loads)
        yield from (loaded, users, memory, loads)
        budget = self._models.rules.memory
        yield GaugeMetricFamily(
            "jaxllama_models_memory_limit_bytes", "Memory that all models may take", budget
        )

    def _adapters(self) -> Iterator[Metric]:
        """Yield the counter of the requests of each LoRA adapter."""
        family = CounterMetricFamily(
            "jaxllama_adapter_requests",
            "Requests with a LoRA adapter",
            labels=[*self._labels, "adapter"],
        )
        for model in self._models.all:
            for name, count in model.service.adapter_requests().items():
                family.add_metric([*self._label(model.name), name], count)
        yield family


def waits_of(histogram: Histogram) -> Waits:
    """Return the bounds and counts of a histogram's buckets."""
    return Waits(list(histogram.bounds[:-1]), list(histogram.counts))


def tasks() -> int:
    """Return the number of tasks of the running event loop; 0 if none runs in this thread."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
