"""What the gateway counts, for Prometheus.

Labels are bound once and kept, and what every request counts is added up here and handed on when somebody looks: a sum in our own dict costs a
tenth of prometheus_client's `labels()` and `inc()`, which hold locks for threads that this process does not have. A model's name is
a label only where the node serves that model, so that clients cannot make series.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from polypod.serve.http.room import Room
from polypod.serve.loop import ReplicaState

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
UNKNOWN_MODEL: Final = "unknown"
_TTFT_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_TPOT_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)


class Metrics:
    """The series of one node. Times to first token and per token are of streams only: only there are they seen."""

    def __init__(self, models: Iterable[str]) -> None:
        self._models = frozenset(models)
        self._due: defaultdict[Counter | Gauge, int] = defaultdict(int)  # since somebody looked
        self._registry = registry = CollectorRegistry()
        requests = Counter(
            "polypod_requests", "Requests answered", ["model", "status"], registry=registry
        )
        in_flight = Gauge(
            "polypod_requests_in_flight", "Requests not yet answered", ["model"], registry=registry
        )
        first = Histogram(
            "polypod_time_to_first_token_seconds",
            "Arrival to first byte of a stream",
            ["model", "replica"],
            buckets=_TTFT_BUCKETS_S,
            registry=registry,
        )
        each = Histogram(
            "polypod_time_per_output_token_seconds",
            "Mean time between the tokens of a stream",
            ["model", "replica"],
            buckets=_TPOT_BUCKETS_S,
            registry=registry,
        )
        tokens = Counter(
            "polypod_tokens",
            "Tokens of finished answers",
            ["model", "direction"],
            registry=registry,
        )
        retries = Counter(
            "polypod_retries", "Attempts given up and tried again", ["reason"], registry=registry
        )
        self._requests = cache(requests.labels)
        self._in_flight = cache(in_flight.labels)
        self._first = cache(first.labels)
        self._each = cache(each.labels)
        self._tokens = cache(tokens.labels)
        self._retries = cache(retries.labels)
        continuations = Counter(
            "polypod_continuations",
            "Streams that broke off and went on",
            ["mode"],
            registry=registry,
        )
        self._continuations = cache(continuations.labels)
        handovers = Counter(
            "polypod_cache_handovers",
            "Caches that went from one replica to another, or were lost on the way",
            ["result"],
            registry=registry,
        )
        handover_s = Counter(
            "polypod_cache_handover_seconds",
            "Time spent on them, by the engines' own clocks",
            ["step"],
            registry=registry,
        )
        self._handovers = cache(handovers.labels)
        self._handover_s = cache(handover_s.labels)
        self._handover_bytes = Counter(
            "polypod_cache_handover_bytes", "Bytes that arrived", registry=registry
        )
        self._cut = Counter(
            "polypod_clients_cut",
            "Clients cut off because they did not take their answer",
            registry=registry,
        )
        self._up = Gauge(
            "polypod_replica_up", "1 while routed to", ["replica", "model"], registry=registry
        )
        self._corrections = Gauge(
            "polypod_step_time_correction",
            "Measured step time over predicted",
            ["replica", "phase"],
            registry=registry,
        )
        self._foresight = Gauge(
            "polypod_foresight_seconds",
            "Of late, from dispatch to the first token and to the end, as predicted and as it came",
            ["replica", "until", "what"],
            registry=registry,
        )
        self._connections = Gauge(
            "polypod_client_connections", "Connections of clients", registry=registry
        )
        self._bodies = Gauge(
            "polypod_request_body_bytes", "Bodies of requests under way", registry=registry
        )
        self._full = Counter(
            "polypod_refused_full",
            "Clients refused because all together had as much as they may",
            ["what"],
            registry=registry,
        )
        self._idle_closed = Counter(
            "polypod_idle_closed",
            "Idle connections of clients closed to let others in",
            registry=registry,
        )
        self._record_failures = Counter(
            "polypod_record_failures", "Times recording had to stop", registry=registry
        )

    def serve(self, models: Iterable[str]) -> None:
        """From here on these are the node's models."""
        self._models = frozenset(models)

    def label(self, model: str) -> str:
        """The label that stands for a model a client named."""
        return model if model in self._models else UNKNOWN_MODEL

    def request_began(self, model: str) -> None:
        self._due[self._in_flight(model)] += 1

    def request_ended(self, model: str, status: int | str) -> None:
        """`status` is what the client saw, or `client_gone` or `broken_stream`."""
        self._due[self._in_flight(model)] -= 1
        self._due[self._requests(model, status)] += 1

    def request_refused(self, status: int) -> None:
        """Refused at the door, before anybody looked for its model."""
        self._requests(UNKNOWN_MODEL, status).inc()

    def first_token(self, model: str, replica: str, after_s: float) -> None:
        self._first(model, replica).observe(after_s)

    def per_token(self, model: str, replica: str, token_s: float) -> None:
        self._each(model, replica).observe(token_s)

    def tokens(self, model: str, *, input_tokens: int | None, output_tokens: int) -> None:
        if input_tokens:
            self._due[self._tokens(model, "input")] += input_tokens
        self._due[self._tokens(model, "output")] += output_tokens

    def retried(self, reason: str) -> None:
        self._retries(reason).inc()

    def cache_saved(self, save_s: float) -> None:
        self._handover_s("save").inc(save_s)

    def cache_restored(self, restore_s: float, size_bytes: int) -> None:
        self._handovers("restored").inc()
        self._handover_s("restore").inc(restore_s)
        self._handover_bytes.inc(size_bytes)

    def cache_lost(self, result: str) -> None:
        """`result` says what becomes of the request."""
        self._handovers(result).inc()

    def client_cut(self) -> None:
        self._cut.inc()

    def continued(self, mode: str) -> None:
        self._continuations(mode).inc()

    def refused_full(self, what: str) -> None:
        """`what` there was no room for."""
        self._full.labels(what).inc()

    def idle_closed(self) -> None:
        self._idle_closed.inc()

    def show(self, room: Room) -> None:
        """What clients have, whenever somebody looks."""
        self._connections.set_function(lambda: room.connections)
        self._bodies.set_function(lambda: room.body_bytes)

    def record_failed(self) -> None:
        self._record_failures.inc()

    def text(
        self, replicas: Iterable[ReplicaState], foresight: Mapping[str, Mapping[str, float]]
    ) -> bytes:
        """The exposition; what is a state rather than a count is set here, when somebody looks."""
        for counted, more in self._due.items():
            counted.inc(more)
        self._due.clear()
        self._up.clear()
        for known in replicas:
            self._up.labels(known.replica, known.model).set(known.state == "up")
        self._corrections.clear()
        self._foresight.clear()
        for replica, shown in foresight.items():
            for name, value in shown.items():
                what, _, rest = name.partition("_")
                if name.endswith("_correction_ratio"):
                    self._corrections.labels(replica, what).set(value)
                else:
                    self._foresight.labels(replica, rest.removesuffix("_s"), what).set(value)
        return generate_latest(self._registry)
