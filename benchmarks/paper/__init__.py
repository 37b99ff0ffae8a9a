"""The paper's tables and figures, made again in the simulated feed, beside the paper's own numbers."""
