"""``python -m benchmarks loop``: one complete turn, from traffic to the next policy and its test."""
