"""``python -m triton_models``."""

from triton_models.cli import main

raise SystemExit(main())
