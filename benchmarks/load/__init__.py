"""Load on the sidecar: request bodies from the simulated feed, Locust users, and what came of it."""
