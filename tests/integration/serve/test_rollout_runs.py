"""Another version, of another run, in a running tritonserver: each decision names the run that chose."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from serve.api import create_app
from serve.config import SidecarConfig
from serve.fakes import FakeRankerClient
from serve.sidecar import Sidecar
from tests.support.runs import write_untrained_run
from tests.unit.serve.asgi import AsgiClient, running
from tests.unit.serve.support import SURFACE, body
from triton_models.export import export_run
from triton_models.remote import RemoteServer
from triton_models.rollout import roll_out
from triton_models.server import EmbeddedServer

FIRST, SECOND = "untrained-small-0", "untrained-small-5"
ENOUGH = 100


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    rows = [row for path in folder.rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return {row["request_id"]: row for row in rows}


class Asking:
    """The same request one after the other: its values tell which network chose."""

    def __init__(self, client: AsgiClient) -> None:
        self._client = client
        self._stop = asyncio.Event()
        self.values: list[float] = []
        self._task = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        while not self._stop.is_set():
            answer = await self._client.post("/v1/rank", body(request_id=f"r{len(self.values)}"))
            found = answer.json()
            assert found["source"] == "value_network", found
            self.values.append(round(found["values"][SURFACE.objectives[0]], 4))
            await asyncio.sleep(0.002)

    async def more(self) -> float:
        """So many more answers; the last one's value."""
        until = len(self.values) + ENOUGH
        while len(self.values) < until and not self._task.done():
            await asyncio.sleep(0.005)
        return self.values[-1]

    async def end(self) -> None:
        self._stop.set()
        await self._task


def test_decisions_name_the_run_of_the_version_that_chose(tmp_path: Path) -> None:
    repository, log = tmp_path / "repository", tmp_path / "decisions"
    export_run(write_untrained_run(SURFACE, tmp_path / "first", seed=0), repository)
    export_run(write_untrained_run(SURFACE, tmp_path / "second", seed=5), repository, hold=True)
    run_of: dict[float, str] = {}

    async def main(server: EmbeddedServer) -> list[float]:
        # Its parameters are read once: every later roll-out has to be noticed from the answers.
        network = {"addresses": [server.grpc_address], "budget_ms": 5000.0, "recheck_s": 600.0}
        config = SidecarConfig.from_dict(
            {
                "surface": SURFACE.to_dict(),
                "value_network": network,
                "ranker": {"addresses": ["fake:1"]},
                "decision_log": {"folder": str(log), "sample_rate": 1.0},
            }
        )
        ranker = FakeRankerClient(len(SURFACE.heads))
        app = create_app(config, lambda c: Sidecar(c, ranker_clients=[ranker]))
        async with running(app) as client:
            (link,) = app.state.sidecar.links.links
            while link.link != "verified":
                await asyncio.sleep(0.01)
            asking = Asking(client)
            run_of[await asking.more()] = FIRST
            with RemoteServer(server.grpc_address) as remote:
                for version, run_id in ((2, SECOND), (1, FIRST)):
                    await asyncio.to_thread(roll_out, remote, repository, version=version)
                    run_of[await asking.more()] = run_id
            await asking.end()
        return asking.values

    with EmbeddedServer(repository) as server:
        values = asyncio.run(main(server))
    assert sorted(run_of.values()) == [FIRST, SECOND], "two networks that can be told apart"
    rows = rows_of(log)
    named = [rows[f"r{number}"]["run_id"] for number in range(len(values))]
    for number, (run_id, value) in enumerate(zip(named, values, strict=True)):
        assert run_id in (run_of[value], None), (number, run_id, value)
    # Unknown is the second run alone, and only until its parameters were read.
    unknown = [number for number, run_id in enumerate(named) if run_id is None]
    assert {run_of[values[number]] for number in unknown} <= {SECOND}
    assert len(unknown) < ENOUGH
    assert (named[0], named[-1]) == (FIRST, FIRST) and SECOND in named
