"""``python -m ray_train COMMAND``."""

from ray_train.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
