"""What Prometheus sees of the decision log. Published from the log's thread, not the requests'."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from serve.config import SidecarConfig
from serve.decision_log import DecisionLog
from serve.spool_writer import DROP_REASONS


class DecisionLogMetrics:
    """Counters that follow the log's own numbers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, mode: str) -> Gauge:
            return Gauge(name, text, registry=registry, multiprocess_mode=mode)  # type: ignore[arg-type]

        self._records = gauge(
            "puts_decision_log_queue_records", "Decisions in memory, not in the spool yet", "livesum"
        )
        self._bytes = gauge("puts_decision_log_queue_bytes", "Memory of those decisions", "livesum")
        self._spool = gauge(
            "puts_decision_log_spool_bytes", "Spool of the node: what is not a segment yet", "livemax"
        )
        self._backlog = gauge(
            "puts_decision_log_spool_files_waiting", "Ended spool files that wait for the storage", "livesum"
        )
        self._last_write = gauge(
            "puts_decision_log_last_write_timestamp_seconds", "When decisions went to the spool", "livemax"
        )
        self._storage_up = gauge(
            "puts_decision_log_storage_up", "0: the storage refused the last segment", "livemin"
        )
        counters = {
            "written": "Decisions that went to the spool",
            "segments": "Segments put in place",
            "segment_bytes": "Bytes of those segments",
            "recovered_rows": "Decisions of dead processes that became segments",
            "storage_failures": "Segments that the storage did not take; they are tried again",
        }
        self._counters = {
            name: Counter(f"puts_decision_log_{name}_total", text, registry=registry)
            for name, text in counters.items()
        }
        dropped = Counter(
            "puts_decision_log_dropped_total",
            "Decisions that were not logged, by reason",
            ["reason"],
            registry=registry,
        )
        self._dropped = {reason: dropped.labels(reason) for reason in DROP_REASONS}
        self._seen: dict[str, int] = {}

    def publish(self, log: DecisionLog) -> None:
        """Bring the metrics up to the log's numbers."""
        self._records.set(log.queue_depth)
        self._bytes.set(log.queue_bytes)
        self._spool.set(log.writer.spooled_bytes)
        self._backlog.set(log.shipper.backlog)
        self._storage_up.set(log.shipper.last_error is None)
        if log.last_write_s is not None:
            self._last_write.set(log.last_write_s)
        numbers = {
            "written": log.writer.written,
            "segments": log.shipper.segments,
            "segment_bytes": log.shipper.segment_bytes,
            "recovered_rows": log.shipper.recovered_rows,
            "storage_failures": log.shipper.failures,
        }
        for name, value in numbers.items():
            self._counters[name].inc(self._new(name, value))
        for reason, value in log.dropped.items():
            self._dropped[reason].inc(self._new(f"dropped.{reason}", value))

    def _new(self, name: str, value: int) -> int:
        before, self._seen[name] = self._seen.get(name, 0), value
        return value - before


def open_decision_log(config: SidecarConfig, registry: CollectorRegistry) -> DecisionLog | None:
    """The decision log of a sidecar's configuration, its metrics beside the sidecar's; not started yet.

    Raises:
        ConfigurationError: user ids are to be hashed and there is no salt.
    """
    if config.decision_log is None:
        return None
    return DecisionLog(config.surface, config.decision_log, publish=DecisionLogMetrics(registry).publish)
