"""Metrics under the names of vLLM, for routers that choose a server by these.

Readers are llm-d, the Gateway API inference extension, AIBrix and vLLM's own router. Made with the
application if `--metrics-names vllm` is given. The figures are those of `metrics.py`.
"""

import time
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jaxllama.service import GenerationService
from jaxllama.service.block_events import BLOCK
from jaxllama.service.served_models import ServedModels


class RouterMetrics(Collector):
    """Gauges of load, KV cache and adapters, with vLLM's names and labels."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges of the loaded models; none while no model is loaded."""
        families: dict[str, GaugeMetricFamily] = {}
        for each in self._models.all:
            if each.service.thread is None:
                continue
            for name, words, value, labels in gauges_of(each.service):
                family = families.setdefault(name, gauge(name, words, list(labels)))
                family.add_metric(list(labels.values()), value)
        yield from families.values()


def gauges_of(service: GenerationService) -> Iterator[tuple[str, str, float, dict[str, str]]]:
    """Yield (name, description, value, labels) for each gauge of one loaded model."""
    figures, engine = service.figures(), service.model.engine
    slots, context = engine.config.slots, engine.config.context
    held = sum(min(state.cached, context) for state in service.slots() if state.is_held)
    model = {"model_name": service.model.name}
    gauges = {
        "num_requests_running": (
            "Answers whose prompt is read or that are being written",
            figures["engine_filling"] + figures["engine_running"],
        ),
        "num_requests_waiting": (
            "Answers that wait",
            figures["queue_requests"] + figures["engine_waiting"],
        ),
        "kv_cache_usage_perc": (
            "Share of the KV cache that requests hold, from 0 to 1",
            held / (slots * context),
        ),
    }
    for name, (words, value) in gauges.items():
        yield name, words, value, model
    count = slots * -(-context // BLOCK)
    blocks = {"block_size": str(BLOCK), "num_gpu_blocks": str(count)}
    yield "cache_config_info", "Size of the KV cache", 1.0, blocks
    if engine.adapters is not None:
        # A loaded adapter costs a request no loading, so all loaded ones count as running.
        loaded = {
            "max_lora": str(engine.config.adapter_slots),
            "running_lora_adapters": ",".join(engine.adapters.names),
            "waiting_lora_adapters": "",
        }
        words = "LoRA adapters loaded, with the time of this report"
        yield "lora_requests_info", words, time.time(), loaded


def gauge(name: str, words: str, labels: list[str]) -> GaugeMetricFamily:
    """Return a Prometheus gauge named vllm:NAME without values.

    `words` is its description, `labels` are the names of its labels.
    """
    return GaugeMetricFamily(f"vllm:{name}", words, labels=labels)
