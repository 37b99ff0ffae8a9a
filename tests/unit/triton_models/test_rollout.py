"""Roll-out over a server that only remembers: the order of the steps, and that any failure keeps the old."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2 as pb

from triton_models.config_pbtxt import config_parameters
from triton_models.errors import (
    PutsError,
    RepositoryError,
    SurfaceMismatchError,
    UpstreamError,
    UpstreamUnavailableError,
)
from triton_models.published import require_model
from triton_models.remote import ServedModel
from triton_models.repository import publish_model, select_version
from triton_models.repository_files import ROLLOUT_LOCK, locked
from triton_models.rollout import RolloutReport, roll_out
from triton_models.tensors import TensorSpec

X = (TensorSpec("x", "FP32", (2,)),)


class FakeServer:
    """Loads what it is told; ``fails`` maps a call (as in ``calls``) to the error that it raises."""

    url = "fake:1"

    def __init__(self) -> None:
        self.models: dict[str, pb.ModelConfig] = {}
        self.calls: list[str] = []
        self.files: dict[str, bytes] = {}
        self.fails: dict[str, BaseException] = {}
        self.problems: dict[str, str] = {}
        self._late: pb.ModelConfig | None = None

    def _call(self, text: str) -> None:
        self.calls.append(text)
        if text in self.fails:
            raise self.fails[text]

    def require_live(self) -> None:
        self._call("live")

    def served(self, model: str) -> ServedModel | None:
        config = self.models.get(model)
        if config is None:
            return None
        return ServedModel(
            tuple(config.version_policy.specific.versions), config, config_parameters(config), (), ()
        )

    def load(self, model: str, config: str, files: Mapping[str, bytes] | None = None) -> None:
        parsed = json_format.Parse(config, pb.ModelConfig())
        assert parsed.name == model
        if self._late is not None:  # loads of one model come one after the other
            late, self._late = self._late, None
            self.models[late.name] = late
        try:
            self._call(f"load {model} {list(parsed.version_policy.specific.versions)}")
        except KeyboardInterrupt:
            self._late = parsed  # the client gave up, the server goes on
            raise
        self.files = dict(files or {})
        self.models[model] = parsed

    def unload(self, model: str) -> None:
        self._call(f"unload {model}")
        self.models.pop(model, None)

    def infer(self, model: str, arrays: Any, outputs: Sequence[str] = ()) -> Any:
        raise AssertionError("these versions have no stored cases")

    def probe(self, model: str) -> str | None:
        versions = list(self.models[model].version_policy.specific.versions)
        self._call(f"probe {model} {versions}")
        return self.problems.get(f"{model} {versions}")


def publish(root: Path, **options: Any) -> int:
    content = b"content %d" % (require_model(root, "m").versions[-1] if (root / "m").exists() else 0)
    return publish_model(root, name="m", onnx_bytes=content, inputs=X, outputs=X, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    publish(tmp_path, parameters={"run_id": "one"})
    publish(tmp_path, parameters={"run_id": "two"}, select=False)
    return tmp_path


@pytest.fixture
def server(root: Path) -> FakeServer:
    """Serves what the repository selects."""
    fake = FakeServer()
    fake.models["m"] = require_model(root, "m").config
    return fake


def out(server: FakeServer, root: Path, **options: Any) -> RolloutReport:
    return roll_out(server, root, model="m", **options)


def selected(root: Path) -> int:
    return require_model(root, "m").served


def test_beside_checked_unloaded_switched_selected(server: FakeServer, root: Path) -> None:
    report = out(server, root)
    assert (report.old, report.new, report.changed) == (1, 2, True)
    assert server.calls == [
        "live",
        "load m.candidate [1]",
        "probe m.candidate [1]",
        "unload m.candidate",
        "load m [2]",
        "probe m [2]",
    ]
    assert (selected(root), require_model(root, "m").served_before) == (2, (1,))
    assert server.models["m"] == require_model(root, "m").config, "server and repository say the same"


def test_the_candidate_comes_with_its_own_files(server: FakeServer, root: Path) -> None:
    server.fails["probe m.candidate [1]"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        out(server, root)
    assert set(server.files) == {"1/model.onnx", "1/model.py"}
    assert server.files["1/model.onnx"] == (root / "m" / "2" / "model.onnx").read_bytes()


def test_once_more_changes_nothing(server: FakeServer, root: Path) -> None:
    out(server, root)
    server.calls.clear()
    assert not out(server, root).changed
    assert server.calls == ["live", "probe m [2]"]
    assert require_model(root, "m").served_before == (1,)


def test_back_and_further_back_but_not_forth(server: FakeServer, root: Path) -> None:
    out(server, root)
    publish(root, select=False)
    out(server, root)
    assert (selected(root), require_model(root, "m").served_before) == (3, (1, 2))
    assert out(server, root, back=True).new == 2
    assert out(server, root, back=True).new == 1
    assert selected(root) == 1
    with pytest.raises(
        RepositoryError, match=r"no version that was served before 1 is left; name one of 1, 2, 3"
    ):
        out(server, root, back=True)
    assert out(server, root, back=True, version=3).new == 3


def test_back_goes_to_what_the_server_had_not_to_what_was_only_published(
    server: FakeServer, root: Path
) -> None:
    """Versions 3 and 4 are published and selected; the server never saw 3."""
    for _ in range(2):
        publish(root, keep=4)
    assert selected(root) == 4
    out(server, root)
    assert out(server, root, back=True).new == 1


def test_a_pruned_version_is_skipped_on_the_way_back(server: FakeServer, root: Path) -> None:
    for _ in range(3):
        out(server, root)
        publish(root, select=False, keep=2)
    out(server, root)
    assert require_model(root, "m").versions == (4, 5)
    assert out(server, root, back=True).new == 4


def test_a_server_without_the_model_gets_it(root: Path) -> None:
    server = FakeServer()
    report = out(server, root)
    assert (report.old, report.new, report.changed) == (None, 2, True)
    assert selected(root) == 2


@pytest.mark.parametrize(
    "step", ["load m.candidate [1]", "probe m.candidate [1]", "load m [2]", "probe m [2]"]
)
@pytest.mark.parametrize("selects_new", [False, True])
@pytest.mark.parametrize("error", [UpstreamError("as told"), KeyboardInterrupt()])
def test_any_failure_keeps_the_old_one(
    server: FakeServer, root: Path, step: str, selects_new: bool, error: BaseException
) -> None:
    if selects_new:
        select_version(root, "m", 2)  # as export does by default, before the server has it
    server.fails[step] = error
    with pytest.raises(type(error)) as caught:
        out(server, root)
    if isinstance(error, PutsError):
        assert str(caught.value) == "version 2 was not rolled out: as told; version 1 goes on"
    assert config_parameters(server.models["m"])["run_id"] == "one"
    assert set(server.models) == {"m"}, "no candidate stays"
    assert (selected(root), require_model(root, "m").parameters["run_id"]) == (1, "one")


def test_after_a_failed_load_the_old_one_is_loaded_in_its_place(server: FakeServer, root: Path) -> None:
    """Otherwise the server as a whole would say "not ready" for ever."""
    server.fails["probe m.candidate [1]"] = UpstreamError("as told")
    with pytest.raises(UpstreamError):
        out(server, root)
    assert server.calls[1:] == [
        "load m.candidate [1]",
        "probe m.candidate [1]",
        "load m.candidate [1]",
        "unload m.candidate",
    ]
    assert server.files["1/model.onnx"] == (root / "m" / "1" / "model.onnx").read_bytes()


def test_a_wrong_answer_is_a_failure(server: FakeServer, root: Path) -> None:
    server.problems["m.candidate [1]"] = "m.candidate: output y came back empty"
    with pytest.raises(UpstreamError, match=r"came back empty; version 1 goes on"):
        out(server, root)
    assert "load m [2]" not in server.calls


def test_a_repository_that_cannot_be_written_puts_the_old_one_back(
    server: FakeServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton_models.rollout as module

    real, calls = module.select_version, []

    def fail_once(*arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise RepositoryError("disk full")
        real(*arguments, **options)

    monkeypatch.setattr(module, "select_version", fail_once)
    with pytest.raises(RepositoryError, match="disk full; version 1 goes on"):
        out(server, root)
    assert server.calls[-1] == "load m [1]"
    assert list(server.models["m"].version_policy.specific.versions) == [1]


def test_a_server_that_dies_is_named_and_the_old_version_selected(server: FakeServer, root: Path) -> None:
    gone = UpstreamUnavailableError("nobody answers")
    select_version(root, "m", 2)
    server.fails |= {"load m [2]": gone, "unload m.candidate": gone}
    real, calls = server.served, []

    def served(model: str) -> ServedModel | None:
        calls.append(model)
        if len(calls) > 1:
            raise gone
        return real(model)

    server.served = served  # type: ignore[method-assign]
    with pytest.raises(UpstreamError, match="nobody answers; putting version 1 back failed: nobody answers"):
        out(server, root)
    assert selected(root) == 1


def test_a_damaged_version_never_reaches_the_server(server: FakeServer, root: Path) -> None:
    (root / "m" / "2" / "model.onnx").unlink()
    with pytest.raises(RepositoryError, match=r"model.onnx: is missing"):
        out(server, root)
    assert server.calls == ["live"]
    assert selected(root) == 1


def test_a_damaged_version_that_was_selected_already_is_selected_no_more(
    server: FakeServer, root: Path
) -> None:
    """A server that restarts must find a version that it can load."""
    select_version(root, "m", 2)
    (root / "m" / "2" / "model.onnx").write_bytes(b"other")
    with pytest.raises(RepositoryError, match=r"not the file that was published.*; version 1 goes on"):
        out(server, root)
    assert selected(root) == 1


def test_a_mistyped_version_changes_nothing(server: FakeServer, root: Path) -> None:
    select_version(root, "m", 2)
    with pytest.raises(RepositoryError, match=r"no such version; the repository holds 1, 2"):
        out(server, root, version=99)
    assert (selected(root), server.calls) == (2, ["live"])


def test_the_served_version_that_answers_wrongly_is_named(server: FakeServer, root: Path) -> None:
    server.problems["m [1]"] = "m: output y came back empty"
    with pytest.raises(UpstreamError, match=r"^fake:1: m: output y came back empty$"):
        out(server, root, version=1)


def test_another_surface_needs_force(server: FakeServer, root: Path) -> None:
    for fingerprint in ("aaaa", "bbbb"):
        publish(root, parameters={"surface_fingerprint": fingerprint}, select=False)
    out(server, root, version=3)
    with pytest.raises(SurfaceMismatchError, match=r"surface bbbb, the server serves aaaa: .* --force"):
        out(server, root)
    assert selected(root) == 3
    assert out(server, root, force=True).new == 4


def test_one_roll_out_at_a_time(server: FakeServer, root: Path) -> None:
    with locked(root, ROLLOUT_LOCK), pytest.raises(RepositoryError, match="another process works on"):
        out(server, root)


def test_a_value_network_without_cases_is_refused(server: FakeServer, root: Path) -> None:
    from tests.support.surfaces import small_surface

    surface = small_surface()
    parameters = {"surface": json.dumps(surface.to_dict()), "surface_fingerprint": surface.fingerprint}
    publish(root, parameters=parameters, select=False)
    with pytest.raises(RepositoryError, match=r"cases.npz: no stored cases"):
        out(server, root)
    assert "load m [3]" not in server.calls
