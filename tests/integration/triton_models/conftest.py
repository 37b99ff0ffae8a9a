"""One real tritonserver with an exported, never fitted value network and two tiny models by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.onnx_models import TABLE_INPUTS, TABLE_OUTPUTS, table_model
from tests.support.runs import write_untrained_run
from triton_models.export import ExportReport, export_run
from triton_models.repository import publish_model
from triton_models.server import EmbeddedServer
from triton_models.surface import Surface


def publish_table(repository: Path, name: str, **options: Any) -> int:
    """Publish the model by hand."""
    return publish_model(
        repository,
        name=name,
        onnx_bytes=table_model(),
        inputs=TABLE_INPUTS,
        outputs=TABLE_OUTPUTS,
        **options,
    )


@dataclass(frozen=True)
class Exported:
    run: Path
    repository: Path
    report: ExportReport


@pytest.fixture(scope="session")
def exported(surface: Surface, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    run = write_untrained_run(surface, folder / "run")
    return Exported(run, folder / "repository", export_run(run, folder / "repository"))


@pytest.fixture(scope="session")
def server(exported: Exported) -> Iterator[EmbeddedServer]:
    # "checked" knows its codes; "unchecked" finds out inside ONNX Runtime, in the middle of a batch.
    publish_table(exported.repository, "checked", input_rules={"code": "codes:3"})
    publish_table(exported.repository, "unchecked")
    with EmbeddedServer(exported.repository) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: EmbeddedServer) -> Iterator[Any]:
    import tritonclient.grpc as grpc

    connection = grpc.InferenceServerClient(server.grpc_address)
    yield connection
    connection.close()


@pytest.fixture
def table_repository(tmp_path: Path) -> Path:
    """A repository of one tiny model, for servers that a test breaks."""
    publish_table(tmp_path / "repository", "table")
    return tmp_path / "repository"
