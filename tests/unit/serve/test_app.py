"""What a replica does once it has everything that it keeps."""

from __future__ import annotations

import gc

from serve.app import spare_the_collector


def test_what_a_replica_keeps_is_walked_by_no_later_collection() -> None:
    kept = [[number] for number in range(1000)]
    before = gc.get_freeze_count()
    try:
        spare_the_collector()
        assert gc.get_freeze_count() >= before + len(kept)
        assert not any(found is kept for found in gc.get_objects())
        # What comes later is collected as ever.
        later: list[object] = []
        later.append(later)
        del later
        assert gc.collect() >= 1
    finally:
        gc.unfreeze()
