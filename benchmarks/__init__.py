"""The simulated feed, load and latency benchmarks, and the demonstration of the whole loop."""
