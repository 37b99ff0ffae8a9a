"""One module per command of ``python -m ray_train``; each has ``add_parser(subparsers)``."""
