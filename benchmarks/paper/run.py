"""The parts of a run, one after the other: those that are missing are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.paper.ablation import ablation_part
from benchmarks.paper.feed_figures import feed_part
from benchmarks.paper.parts import Part, part
from benchmarks.paper.points import points_part
from benchmarks.paper.report import write_report
from benchmarks.paper.settings import GROUPS, Kind, PaperSettings
from benchmarks.paper.sizes import read_run

Say = Callable[[str], None]


def run_paper(settings: PaperSettings, folder: Path, say: Say, beside: Sequence[Path] = ()) -> str:
    """Make what is missing in ``folder/parts``, then the report of all of it.

    Args:
        settings: of this run.
        folder: where parts and report lie.
        say: takes a line of progress.
        beside: folders of finished runs of other sizes, to show beside.

    Returns:
        The report as Markdown.

    Raises:
        BenchmarkError: a part is damaged or was made with other settings; no finished run to show beside.
    """
    others = [read_run(other) for other in beside]
    parts = _Parts(settings, folder / "parts", say)
    feeds = [parts.get("feed", f"{seed}", partial(feed_part, settings, seed)) for seed in settings.seeds]
    points = [
        parts.get("points", f"{seed}", partial(points_part, settings, seed, folder, say))
        for seed in settings.seeds
    ]
    ablations = [
        parts.get("ablation", f"{seed}-{group}", partial(ablation_part, settings, seed, group, say))
        for seed in settings.seeds[: settings.ablation_seeds]
        for group in GROUPS
    ]
    return write_report(folder, settings, points, feeds, ablations, others)


class _Parts:
    """The parts of one folder."""

    def __init__(self, settings: PaperSettings, folder: Path, say: Say) -> None:
        self._settings, self._folder, self._say = settings, folder, say

    def get(self, kind: Kind, name: str, make: Callable[[], Part]) -> Part:
        """The part, made if it is missing."""
        file = self._folder / f"{kind}-{name}.json"
        found, made = part(file, self._settings.identity(kind), make)
        self._say(f"{file.stem}: {'done' if made else 'there already'}")
        return found
