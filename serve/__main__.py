"""``python -m serve``: the door of this room."""

from __future__ import annotations

from serve.cli import main

raise SystemExit(main())
