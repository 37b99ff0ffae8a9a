"""The simulated feed: the world in which the truth is known (``world.py`` is the way in)."""
