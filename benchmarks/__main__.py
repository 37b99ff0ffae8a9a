"""``python -m benchmarks COMMAND``."""

from benchmarks.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
