"""The sidecar: fan out beside the ranker, budget, blend, fallback. Never imports torch or Ray Train."""
