"""``python -m benchmarks latency``: what the control adds, and what the sidecar carries."""
