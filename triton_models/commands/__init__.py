"""The commands of ``python -m triton_models``; each module has ``add_parser(subparsers)``."""
