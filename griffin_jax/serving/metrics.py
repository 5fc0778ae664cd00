"""The counts of a server, in Prometheus' format."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from griffin_jax.inference import Engine, PrefixCache
from griffin_jax.serving.errors import RequestError
from griffin_jax.serving.worker import Text

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144)


class Metrics:
    """The counts of one server."""

    def __init__(self, model: str, engine: Engine, cache: PrefixCache | None):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(_OfEngine(model, engine, cache))

        def labeled(kind, name, text, *labels, **options):
            metric = kind(name, text, ("model_name", *labels), registry=self.registry, **options)
            return metric if labels else metric.labels(model)

        self._model = model
        self._first = labeled(
            Histogram,
            "griffin_time_to_first_token_seconds",
            "Seconds from a request's arrival to its first token.",
            buckets=_SECONDS,
        )
        self._between = labeled(
            Histogram,
            "griffin_inter_token_latency_seconds",
            "Seconds between two chunks of a stream, each one or a few tokens.",
            buckets=_SECONDS,
        )
        self._whole = labeled(
            Histogram,
            "griffin_request_duration_seconds",
            "Seconds from a request's arrival to its end.",
            buckets=_SECONDS,
        )
        self._prompt = labeled(
            Histogram, "griffin_request_prompt_tokens", "Prompt tokens a request.", buckets=_TOKENS
        )
        self._written = labeled(
            Histogram,
            "griffin_request_generation_tokens",
            "Generated tokens a request.",
            buckets=_TOKENS,
        )
        self._ends = labeled(
            Counter, "griffin_request_success", "Completed requests, by finish reason.", "reason"
        )
        self._errors = labeled(
            Counter, "griffin_errors", "Rejected or failed requests, by error code.", "kind"
        )

    def count_tokens(self, text: Text, count: int, gap: float | None) -> None:
        """Counts a part of a stream."""
        if gap is not None:
            self._between.observe(gap)

    def count_end(self, text: Text) -> None:
        """Counts a text that has ended."""
        request = text.request
        self._ends.labels(self._model, request.finish_reason).inc()
        self._prompt.observe(len(request.plan.tokens))
        self._written.observe(request.num_tokens)
        if request.first_token_at is not None:
            self._first.observe(request.first_token_at - request.submitted)
        if request.ended_at is not None:
            self._whole.observe(request.ended_at - request.submitted)

    def count_error(self, kind: str) -> None:
        """Counts a request that was refused."""
        self._errors.labels(self._model, kind).inc()

    def page(self) -> bytes:
        """Returns all of it as Prometheus reads it."""
        return generate_latest(self.registry)


class _OfEngine:
    """Collects what the engine and its cache count themselves."""

    def __init__(self, model: str, engine: Engine, cache: PrefixCache | None):
        self._model, self._engine, self._cache = model, engine, cache

    def collect(self) -> Iterable[Metric]:
        """Yields the gauges and counters as they are now."""
        load, stats = self._engine.load(), self._engine.stats
        yield self._gauge("num_requests_running", "Requests that are generating.", load.writing)
        yield self._gauge(
            "num_requests_reading", "Requests whose prompt is being read.", load.reading
        )
        yield self._gauge("num_requests_waiting", "Requests waiting for a slot.", load.waiting)
        yield self._gauge("slots", "Requests that can generate at once.", load.slots)
        yield self._gauge("state_bytes", "Bytes of the decoding states.", load.state_bytes)
        yield self._counter("prompt_tokens", "Prompt tokens processed.", stats.read_tokens)
        yield self._counter("generation_tokens", "Generated tokens.", stats.drawn_tokens)
        yield self._counter(
            "cached_tokens", "Prompt tokens found in the prefix cache.", stats.cached_tokens
        )
        yield self._counter(
            "engine_host_seconds", "Seconds of the engine on the host.", stats.host_seconds
        )
        yield self._counter(
            "engine_wait_seconds", "Seconds it waited for the device.", stats.wait_seconds
        )
        failed = CounterMetricFamily(
            "griffin_device_errors",
            "Requests ended by a device error.",
            labels=("model_name", "kind"),
        )
        for kind, count in dict(stats.errors).items():
            # A RequestError is of what a client asked for, such as too complex a grammar.
            if kind != RequestError.__name__:
                failed.add_metric((self._model, kind), count)
        yield failed
        if self._cache is not None:
            yield from self._of_cache(self._cache)

    def _of_cache(self, cache):
        stats = cache.stats
        yield self._counter("prefix_cache_hits", "Requests resumed from a state.", stats.hits)
        misses = CounterMetricFamily(
            "griffin_prefix_cache_misses",
            "Requests that found no state, by reason.",
            labels=("model_name", "reason"),
        )
        for reason, count in dict(stats.misses).items():
            misses.add_metric((self._model, reason), count)
        yield misses
        yield self._gauge(
            "prefix_cache_device_bytes", "Bytes of states on the device.", cache.device_bytes
        )
        yield self._gauge(
            "prefix_cache_host_bytes", "Bytes of states in host memory.", cache.host_bytes
        )

    def _gauge(self, name, text, value):
        family = GaugeMetricFamily(f"griffin_{name}", text, labels=("model_name",))
        family.add_metric((self._model,), value)
        return family

    def _counter(self, name, text, value):
        family = CounterMetricFamily(f"griffin_{name}", text, labels=("model_name",))
        family.add_metric((self._model,), value)
        return family
