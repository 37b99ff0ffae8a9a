"""Somebody else's log, from Parquet to an answer of the real Triton."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ray_train.cli
import triton_models.cli
from tests.support.foreign import SURFACE, write_foreign_log
from tests.support.inference import infer
from triton_models.encoding import encode_state
from triton_models.frontier import load_frontier
from triton_models.server import EmbeddedServer
from triton_models.surface import load_surface

STATE = {
    "user_embedding": [0.1, -0.2, 0.3, 0.0, 1.0, -1.0],
    "history": {"embedding": [[0.5, 0.5], [1.0, -1.0]], "action": ["view", "view"], "age_s": [60, 5]},
}


@pytest.mark.usefixtures("ray_cluster")
def test_a_log_of_another_program_becomes_an_answer_of_triton(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs, surface_file, run = tmp_path / "logs", tmp_path / "surface.yaml", tmp_path / "run"
    repository = tmp_path / "repository"
    write_foreign_log(logs)
    surface_file.write_text(SURFACE)
    for main, command in (
        (ray_train.cli.main, ["validate", str(logs), "--surface", str(surface_file)]),
        (ray_train.cli.main, ["fit", str(logs), "--surface", str(surface_file), "--out", str(run)]),
        (ray_train.cli.main, ["sweep", str(logs), "--run", str(run), "--bootstrap", "50"]),
        # Forced: one epoch on so short a log does not pass its gate.
        (triton_models.cli.main, ["export", str(run), "--repository", str(repository), "--force"]),
    ):
        code = main([*command, "--epochs", "1"] if command[0] == "fit" else command)
        assert code == 0, capsys.readouterr().err

    surface = load_surface(surface_file)
    frontier = load_frontier(run)
    assert frontier.surface_object.fingerprint == surface.fingerprint
    assert len(frontier.points[0].scalarization) == 3
    scalarizations = np.eye(3, dtype=np.float32)
    encoded = {
        name: np.repeat(array[None], len(scalarizations), axis=0)
        for name, array in encode_state(surface, STATE).items()
    }
    with EmbeddedServer(repository) as server:
        import tritonclient.grpc as grpc

        with grpc.InferenceServerClient(server.grpc_address) as client:
            answer = infer(client, "value_network", encoded | {"scalarization": scalarizations})
    q_BAM = answer["action_values"]
    assert q_BAM.shape == (3, 18, 3)
    np.testing.assert_array_equal(answer["action"][:, 0], q_BAM[0].argmax(axis=0))
    np.testing.assert_allclose(answer["weights"], surface.actions[answer["action"][:, 0]], rtol=1e-6)
