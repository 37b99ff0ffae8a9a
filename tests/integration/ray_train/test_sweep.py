"""The sweep on the real Ray: equal to plain NumPy, planted effects found, the page opened in Chromium."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_train.cli import main
from ray_train.ingest import encode_table
from ray_train.logs import discover_files
from ray_train.production import production_policy
from ray_train.reading import list_units
from ray_train.scoring import ScoringTask, score_log
from ray_train.sweep import build_frontier
from ray_train.sweep_settings import SweepSettings
from tests.support.frontiers import run_reference, window
from tests.support.logs import make_log, replace_cell, write_log
from tests.support.runs import write_untrained_run
from tests.support.surfaces import small_surface
from triton_models.frontier import Frontier, load_frontier
from triton_models.network import greedy_actions
from triton_models.runs import load_run
from triton_models.surface import Surface
from triton_models.tensors import state_specs

pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
]

ROWS = 6000
WINDOW = (datetime(2026, 1, 15, tzinfo=UTC), datetime(2026, 1, 22, tzinfo=UTC))
"""The hold-out of the untrained run; the log of 21 days has a third of its rows in it."""
NOW = datetime(2026, 6, 1, tzinfo=UTC)


class PlantedNetwork(torch.nn.Module):
    """Knows the planted world: Q is the truth for the taste, which is the sign of the first feature."""

    def __init__(self, surface: Surface) -> None:
        super().__init__()
        objectives = len(surface.objectives)
        signed = 2 * surface.normalized_actions - 1
        push = np.stack([signed[:, m::objectives].sum(axis=1) for m in range(objectives)], axis=1)
        self.register_buffer("push_AM", torch.tensor(push, dtype=torch.float32))

    def action_values(self, state: dict[str, torch.Tensor]) -> torch.Tensor:
        taste = torch.sign(state["user_embedding"][:, 0])
        return 0.5 + 0.2 * taste[:, None, None] * self.push_AM


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """A log with one bad row and one duplicate in the hold-out."""
    good = make_log(small_surface(), ROWS)
    bad = replace_cell(good, "propensity", ROWS - 10, 0.0)
    return replace_cell(bad, "request_id", ROWS - 1, bad.column("request_id")[ROWS - 2].as_py())


@pytest.fixture(scope="module")
def logs(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(table, tmp_path_factory.mktemp("logs"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_untrained_run(small_surface(), tmp_path / "run")


@pytest.fixture(scope="module")
def swept(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its frontier, made through the door."""
    folder = write_untrained_run(small_surface(), tmp_path_factory.mktemp("swept") / "run")
    arguments = [
        "sweep",
        str(logs),
        "--run",
        str(folder),
        "--by",
        "cohort",
        "--bootstrap",
        "200",
        "--estimator",
        "snips",
    ]
    assert main([*arguments, "--batch-size", "500"]) == 0
    return folder


def test_the_sweep_equals_a_naive_computation(swept: Path, table: pa.Table) -> None:
    surface, frontier = small_surface(), load_frontier(swept)
    assert len(frontier.points) == 25 * 4
    instants = np.asarray(table.column("timestamp").cast(pa.int64()))
    inside = (instants >= WINDOW[0].timestamp() * 1e6) & (instants < WINDOW[1].timestamp() * 1e6)
    inside[[ROWS - 10, ROWS - 1]] = False
    arrays = encode_table(surface, table.filter(pa.array(inside)))
    network = load_run(swept).load_network()
    with torch.inference_mode():
        state = {spec.name: torch.tensor(arrays[spec.name]) for spec in state_specs(surface)}
        alpha = np.linspace(0, 1, 25)
        scalarization = torch.tensor(np.stack([1 - alpha, alpha], axis=1), dtype=torch.float32)
        chosen = greedy_actions(network.action_values(state), scalarization).numpy()
    assert len(np.unique(chosen)) > 2  # the test says nothing if every policy were the same
    assert frontier.window.rows == len(arrays["action"])
    assert frontier.window.rows_rejected == 2
    production = production_policy(surface, "smooth").probability_A[arrays["action"]]
    for cohort in (None, *surface.cohorts):
        mine = np.ones(len(production), bool) if cohort is None else arrays["cohort"] == cohort
        base = (production[mine, None] * arrays["rewards"][mine]).sum(axis=0) / production[mine].sum()
        for p, point in enumerate(frontier.points_of(cohort)):
            hit = (chosen[:, p] == arrays["action"]) & mine
            assert point.hits == hit.sum()
            value = arrays["rewards"][hit].astype(float).mean(axis=0)
            np.testing.assert_allclose(list(point.values.values()), value, rtol=1e-12)
            np.testing.assert_allclose(list(point.lifts.values()), value / base - 1, rtol=1e-9, atol=1e-12)
            metric = arrays["metrics"][hit].astype(float).mean(axis=0)
            assert point.metrics["successful_session"].value == pytest.approx(metric[0], rel=1e-9)
            weights = surface.actions[chosen[mine, p]].mean(axis=0)
            np.testing.assert_allclose(list(point.mean_weights.values()), weights, rtol=1e-12)


def test_a_network_that_knows_the_world_gets_the_planted_lift(logs: Path) -> None:
    surface = small_surface()
    settings = SweepSettings(points=3, alpha_min=0.25, alpha_max=0.75, resamples=300)
    files = discover_files(logs)
    task = ScoringTask(
        surface=surface,
        files=files,
        window=(datetime(2026, 1, 1, tzinfo=UTC), WINDOW[1]),
        scalarization_PM=settings.scalarizations(surface),
        now=NOW,
        slice_rows=700,
    )
    seen: list[int] = []
    network: Any = PlantedNetwork(surface)
    scored = score_log(task, list_units(surface, files), network, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == ROWS
    assert (np.diff(scored.rows.user_N) >= 0).all()
    assert len(scored.rows) == ROWS - 2
    assert set(np.unique(scored.chosen_NP)) == {0, surface.num_actions - 1}
    frontier = build_frontier(
        surface=surface, run=run_reference(surface), window=window(ROWS), scored=scored, settings=settings
    )
    for point in frontier.points:  # 0.5 + 0.2 against 0.5, whatever λ
        for name in surface.objectives:
            bounds = point.intervals[name]
            assert bounds is not None
            assert 0 < bounds[0] < 0.4 < bounds[1]
    assert frontier.candidates["non_degrading"].lower_bounds_not_negative


def test_finer_weights_through_the_door(
    run: Path, logs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["sweep", str(logs), "--run", str(run), "--points", "5", "--bootstrap", "100"]
    assert main([*arguments, "--finer", "4", "--estimator", "reward_at_hit"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "finer weights than explored are in no logged row, so reward_at_hit cannot value them" in error
    assert main(arguments) == 0
    plain = load_frontier(run)
    assert main([*arguments, "--finer", "4"]) == 0
    assert "points choose weights between those explored" in " ".join(capsys.readouterr().out.split())
    finer = load_frontier(run)
    assert finer.points_of(None) == plain.points_of(None)  # what was explored is valued as before
    assert finer.candidates == plain.candidates
    between = finer.points_of(None, extrapolated=True)
    assert between
    assert [point.cohort for point in between] == [None] * len(between)
    assert 'class="extrapolated"' in (run / "frontier.html").read_text()


def test_a_second_sweep_writes_the_same_frontier(swept: Path, logs: Path) -> None:
    first = (swept / "frontier.json").read_bytes()
    arguments = [
        "sweep",
        str(logs),
        "--run",
        str(swept),
        "--by",
        "cohort",
        "--bootstrap",
        "200",
        "--estimator",
        "snips",
    ]
    assert main([*arguments, "--batch-size", "2000"]) == 0
    assert (swept / "frontier.json").read_bytes() == first


def test_all_rows_of_another_log(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = write_log(make_log(small_surface(), 900, days=3), tmp_path / "later", files=1)
    arguments = ["sweep", str(later), "--run", str(run), "--bootstrap", "0", "--points", "3"]
    assert main(arguments) == 2
    assert "use --split all" in capsys.readouterr().err
    assert not (run / "frontier.json").exists()
    assert main([*arguments, "--split", "all"]) == 0
    frontier = load_frontier(run)
    assert frontier.window.rows == 900
    assert frontier.window.split == "all"
    assert "frontier.html" in capsys.readouterr().out


def other_surface(_: pa.Table) -> pa.Table:
    data = small_surface().to_dict()
    data["controlled"][0]["head"] = "click_through"
    return make_log(Surface.from_dict(data), 300)


def many_bad(table: pa.Table) -> pa.Table:
    index = table.column_names.index("propensity")
    return table.set_column(index, "propensity", pa.array(np.where(np.arange(ROWS) % 2, 1 / 9, 2.0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_surface, "does not fit surface small: missing weight_repin"),
        (many_bad, "rows of the window are bad"),
        (lambda table: table.slice(0, 1000), "no rows in the run's hold-out window"),
    ],
)
def test_unusable_logs_get_one_line_and_write_nothing(
    change: Any, message: str, run: Path, table: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = write_log(change(table), tmp_path / "broken")
    before = sorted(run.iterdir())
    assert main(["sweep", str(broken), "--run", str(run)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(run.iterdir()) == before


def test_damaged_pages_of_a_file_get_one_line(
    run: Path, logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The footer is whole, so that the damage shows only on the workers."""
    broken = tmp_path / "broken"
    shutil.copytree(logs, broken)
    file = sorted(broken.glob("*.parquet"))[-1]
    content = bytearray(file.read_bytes())
    content[200 : len(content) // 2] = b"\x00" * (len(content) // 2 - 200)
    file.write_bytes(content)
    assert main(["sweep", str(broken), "--run", str(run)]) == 2
    error = capsys.readouterr().err
    assert "part-002.parquet: cannot be read as Parquet" in error
    assert error.count("\n") == 1
    assert not (run / "frontier.json").exists()
    assert not (run / "frontier.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--estimator", "magic"], "estimator must be one of reward_at_hit, ips, snips"),
        (["--points", "1"], "points"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--alpha-min", "0.9", "--alpha-max", "0.1"], "alpha-min must be below alpha-max"),
    ],
)
def test_impossible_options_get_one_line(
    arguments: list[str], message: str, run: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(logs), "--run", str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# ------------------------------------------------------------------------------------------ the page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = next(
        (path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None
    )
    if executable is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-gpu"], headless=True
        )
        yield running
        running.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_works_offline_without_errors(browser: Any, swept: Path, scheme: str, width: int) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    problems: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((swept / "frontier.html").as_uri())
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate(
        "document.documentElement.scrollWidth <= innerWidth"
    )  # only tables and pictures scroll
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    # hovering over a candidate shows its figures
    page.locator("circle.candidate").first.hover()
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert "mean weights" in tip.inner_text()
    assert problems == []
    page.close()


def test_the_page_shows_its_pictures_without_scripts(browser: Any, swept: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((swept / "frontier.html").as_uri())
    assert page.locator("svg").first.is_visible()
    assert page.locator("circle.candidate title").count() > 0  # the browser's own tooltips
    context.close()


def test_the_json_is_strict(swept: Path) -> None:
    text = (swept / "frontier.json").read_text()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert Frontier.model_validate(json.loads(text, parse_constant=refuse)) == load_frontier(swept)
