"""How wrong are the estimators: repetitions of a log whose truth is known."""
