"""The sidecar, and what it is compared with, as processes under load."""
