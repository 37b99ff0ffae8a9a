"""``python -m benchmarks chaos``: one fault after the other under load, and what callers noticed."""
