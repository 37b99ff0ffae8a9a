"""How much of the achievable personalization gain each learner captures, by size of the log."""
