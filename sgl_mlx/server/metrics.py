"""Prometheus metrics under the names that SGLang gives them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
_GAUGES = {
    "num_running_reqs": "Sequences that the engine runs.",
    "num_queue_reqs": "Sequences that wait for the engine.",
    "num_used_tokens": "Slots of the KV pool that requests hold.",
    "token_usage": "Share of the KV pool that requests hold.",
    "max_total_num_tokens": "Slots of the KV pool.",
    "cache_hit_rate": "Prompt tokens found in the cache, as a share of all.",
    "gen_throughput": "Tokens generated per second since the last reading.",
}


class Metrics:
    """The Prometheus metrics of one `Service`, in a registry of their own.

    Args:
        model: value of the label `model_name`.
    """

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self._label = {"model_name": model}
        self._gauges = {name: self._made(Gauge, name, help) for name, help in _GAUGES.items()}
        self.prompt_tokens = self._made(Counter, "prompt_tokens", "Prompt tokens of requests.")
        self.cached_tokens = self._made(
            Counter, "cached_tokens", "Prompt tokens found in the cache."
        )
        self.generated = self._made(Counter, "generation_tokens", "Tokens generated.")
        self.requests = self._made(Counter, "num_requests", "Requests received.")
        self.aborted = self._made(Counter, "num_aborted_requests", "Requests that were aborted.")
        self.first_token = self._seconds("time_to_first_token", "Seconds to the first token.")
        self.between_tokens = self._seconds("inter_token_latency", "Seconds between tokens.")
        self.whole = self._seconds("e2e_request_latency", "Seconds of whole requests.")
        self._read_at, self._read_tokens = time.monotonic(), 0.0

    def text(self, info: Mapping[str, Any]) -> bytes:
        """Set the gauges by `read`; return all metrics in Prometheus's text format."""
        self.read(info)
        return generate_latest(self.registry)

    def read(self, info: Mapping[str, Any]) -> None:
        """Set the gauges from `info`, the engine's `get_server_info()`."""
        for name, value in self._state(info).items():
            self._gauges[name].set(value)

    def _state(self, info: Mapping[str, Any]) -> dict[str, float]:
        stats = info.get("stats", {})
        slots = info.get("max_total_num_tokens", 0)
        free = stats.get("free_slots", 0) + stats.get("cached_slots", 0)
        used = max(slots - free, 0)
        prompt = stats.get("prompt_tokens", 0)
        return {
            "num_running_reqs": stats.get("running", 0),
            "num_queue_reqs": stats.get("waiting", 0),
            "num_used_tokens": used,
            "token_usage": used / slots if slots else 0,
            "max_total_num_tokens": slots,
            "cache_hit_rate": stats.get("cached_tokens", 0) / prompt if prompt else 0,
            "gen_throughput": self._throughput(stats.get("decode_tokens", 0)),
        }

    def _throughput(self, tokens: float) -> float:
        now = time.monotonic()
        made, seconds = tokens - self._read_tokens, now - self._read_at
        self._read_at, self._read_tokens = now, tokens
        return made / seconds if seconds else 0

    def _made(self, kind: Any, name: str, help: str, **more: Any) -> Any:
        labels = tuple(self._label)
        metric = kind(f"sglang:{name}", help, labels, registry=self.registry, **more)
        return metric.labels(**self._label)

    def _seconds(self, name: str, help: str) -> Any:
        return self._made(Histogram, f"{name}_seconds", help, buckets=_SECONDS)


def merged(registries: Sequence[CollectorRegistry]) -> Collector:
    """Return one collector of the metrics in several registries.

    Metrics of the same name become one family, as Prometheus's text format demands.
    """

    class Merged(Collector):
        def collect(self) -> Iterator[Metric]:
            families: dict[str, Metric] = {}
            for registry in registries:
                for metric in registry.collect():
                    family = families.setdefault(metric.name, metric)
                    if family is not metric:
                        family.samples.extend(metric.samples)
            yield from families.values()

    return Merged()
