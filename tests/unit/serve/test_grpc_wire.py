"""What goes over the wire, held equal to tritonclient's own, and what comes back, whatever it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tritonclient.grpc import service_pb2
from tritonclient.grpc._utils import _get_inference_request

from serve.answer_layout import AnswerReader, layout_of, varint
from serve.config import ClientTlsConfig
from serve.grpc_wire import GrpcTemplate, open_channel
from serve.wire import DTYPES, array_of
from tests.support.wires import described_inputs
from triton_models.errors import ConfigurationError, UpstreamInvalidError

KINDS = sorted(DTYPES)


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 40), max_size=3)), max_size=5),
    st.lists(st.text(max_size=20), max_size=20),
)
def test_a_request_is_the_one_that_tritonclient_makes(
    tensors: list[tuple[str, list[int]]], words: list[str]
) -> None:
    specs, contents, inputs = described_inputs(triton_grpc, tensors, words)
    theirs = _get_inference_request(
        model_name="m",
        inputs=inputs,
        model_version="",
        request_id="",
        outputs=[triton_grpc.InferRequestedOutput("y")],
        sequence_id=0,
        sequence_start=False,
        sequence_end=False,
        priority=0,
        timeout=None,
        parameters=None,
    )
    template = GrpcTemplate("m", specs, ["y"])
    assert service_pb2.ModelInferRequest.FromString(template.filled(contents)) == theirs


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 40), max_size=3)), max_size=4),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_an_answer_is_read_as_protobuf_reads_it(
    tensors: list[tuple[str, list[int]]], seed: int, contents_first: bool
) -> None:
    rng, reader = np.random.default_rng(seed), AnswerReader()
    for version in ("1", "1", "2", "1"):
        head = service_pb2.ModelInferResponse(model_name="m", model_version=version)
        tail = service_pb2.ModelInferResponse()
        for number, (datatype, shape) in enumerate(tensors):
            head.outputs.add(name=f"y{number}", datatype=datatype, shape=shape)
            size = int(np.prod(shape)) * np.dtype(DTYPES[datatype]).itemsize
            tail.raw_output_contents.append(rng.bytes(size))
        parts = [head.SerializeToString(), tail.SerializeToString()]
        answer = b"".join(reversed(parts) if contents_first else parts)
        message = service_pb2.ModelInferResponse.FromString(answer)
        outputs = {
            tensor.name: (tensor.datatype, tuple(tensor.shape), raw)
            for tensor, raw in zip(message.outputs, message.raw_output_contents, strict=True)
        }
        assert reader.read(answer) == (version, outputs)
        assert contents_first or layout_of(message, answer) is not None


@pytest.mark.parametrize("at", range(40))
def test_an_answer_of_the_same_size_that_differs_is_parsed_again(at: int) -> None:
    message = service_pb2.ModelInferResponse(model_name="m", model_version="1")
    for name in ("a", "b"):
        message.outputs.add(name=name, datatype="FP32", shape=[1])
        message.raw_output_contents.append(b"\1\2\3\4")
    answer = message.SerializeToString()
    reader = AnswerReader()
    reader.read(answer)
    changed = bytearray(answer)
    changed[at % len(answer)] ^= 0x01
    seen: list[object] = []
    expected: list[object] = []
    for read, into in ((reader.read, seen), (AnswerReader().read, expected)):
        try:
            into.append(read(bytes(changed)))
        except (DecodeError, ValueError) as error:
            into.append(type(error))
    assert seen == expected


@given(st.integers(0, 2**40))
def test_varint(value: int) -> None:
    read = sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(varint(value)))
    assert read == value


@pytest.mark.parametrize(
    ("datatype", "shape", "raw"),
    [
        ("FP32", [2, 2], b"\0" * 12),
        ("FP32", [1], b"\0" * 3),
        ("FP32", [-1, 2], b"\0" * 12),
        ("BYTES", [1], b"\1\0\0\0a"),
        ("", [1], b""),
    ],
)
def test_an_output_that_is_not_what_it_says(datatype: str, shape: list[int], raw: bytes) -> None:
    with pytest.raises(UpstreamInvalidError, match="at here: output y"):
        array_of("m at here", "y", (datatype, tuple(shape), raw))


@pytest.mark.parametrize("changes", [{"certificate": "a.pem"}, {"private_key": "a.key"}, {"x": 1}])
def test_impossible_tls(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ClientTlsConfig.model_validate(changes)


def test_a_certificate_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"tls: cannot read absent\.pem"):
        open_channel("127.0.0.1:1", ClientTlsConfig(root_certificates="absent.pem"))
