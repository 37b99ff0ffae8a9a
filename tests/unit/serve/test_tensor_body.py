"""The binary form of a ranking request: the same answer as JSON, and one clear line for whatever is wrong."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serve.config import RankerConfig
from serve.schema import ErrorAnswer
from serve.tensor_body import LENGTH_HEADER, MEDIA_TYPE
from serve.wire import bytes_tensor
from tests.unit.serve.asgi import Answer
from tests.unit.serve.support import STATE, Rig, body, config, rig

CANDIDATES = list(range(100, 110))
AGE = np.arange(10, dtype=np.float32)
VECTOR = np.arange(30, dtype=np.float16).reshape(10, 3)
FEATURES = {
    "age": {"datatype": "FP32", "shape": []},
    "vector": {"datatype": "FP16", "shape": [3]},
}
WITH_FEATURES = {"ranker": {"candidate_inputs": FEATURES}}

Tensor = tuple[str, str, list[int], bytes]


def tensors() -> dict[str, Tensor]:
    def floats(name: str, values: Any) -> Tensor:
        array = np.array(values, dtype=np.float32)
        return name, "FP32", list(array.shape), array.tobytes()

    def words(name: str, values: list[str]) -> Tensor:
        return name, "BYTES", [len(values)], bytes_tensor(values)

    history = STATE["history"]
    made = [
        floats("user_embedding", STATE["user_embedding"]),
        floats("history_embedding", history["embedding"]),
        words("history_action", history["action"]),
        floats("history_age_s", history["age_s"]),
        words("context", [STATE["context"]["device"], STATE["context"]["daypart"]]),
        ("candidate_ids", "INT64", [10], np.array(CANDIDATES).tobytes()),
        ("age", "FP32", [10], AGE.tobytes()),
        ("vector", "FP16", [10, 3], VECTOR.tobytes()),
    ]
    return {tensor[0]: tensor for tensor in made}


def encoded(chosen: list[Tensor], parameters: Any = None, **header: Any) -> tuple[bytes, dict[str, str]]:
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
        for name, datatype, shape, raw in chosen
    ]
    head = {"inputs": inputs, "parameters": {"k": 3} if parameters is None else parameters, **header}
    front = json.dumps(head).encode()
    return front + b"".join(raw for *_, raw in chosen), {LENGTH_HEADER: str(len(front))}


async def send(r: Rig, content: bytes, headers: dict[str, str]) -> Answer:
    return await r.client.request("POST", "/v1/rank", content, headers)


def test_the_same_answer_as_json_with_the_features_passed_on() -> None:
    async def main() -> None:
        async with rig() as plain:
            expected = await plain.rank(request_id="r1", user_id="u1")
            state_of_json = plain.value.calls[0][0]
        async with rig(config(**WITH_FEATURES)) as r:
            content, headers = encoded(list(tensors().values()), {"k": 3, "user_id": "u1"}, id="r1")
            answer = await send(r, content, headers)
            assert answer.status == 200, answer.body
            found = answer.json()
            assert {k: v for k, v in found.items() if k != "timings_ms"} == {
                k: v for k, v in expected.items() if k != "timings_ms"
            }
            for name, array in r.value.calls[0][0].items():
                np.testing.assert_array_equal(array, state_of_json[name])
            assert r.ranker.calls[0][1] == CANDIDATES
            assert {name: bytes(raw) for name, raw in r.ranker.features[0].items()} == {
                "age": AGE.tobytes(),
                "vector": VECTOR.tobytes(),
            }

            binary = await send(r, content, {**headers, "accept": f"{MEDIA_TYPE}, */*"})
            assert binary.headers["content-type"] == MEDIA_TYPE
            length = int(binary.headers[LENGTH_HEADER])
            head = json.loads(binary.body[:length])
            assert (head["id"], head["parameters"]["action"]) == ("r1", 4)
            items, scores = head["outputs"]
            assert (items["name"], items["datatype"], items["shape"]) == ("items", "INT64", [3])
            assert np.frombuffer(binary.body, np.int64, 3, length).tolist() == expected["items"]
            assert np.frombuffer(binary.body, np.float64, 3, length + 24).tolist() == expected["scores"]
            assert scores["parameters"]["binary_data_size"] == 24

    asyncio.run(main())


@pytest.mark.parametrize("route", ["/v1/rank", "/v1/weights"])
@pytest.mark.parametrize("ranker", [{}, {"candidates_type": "BYTES"}, {"candidate_inputs": FEATURES}])
def test_the_example_of_the_description_is_answered(route: str, ranker: dict[str, Any]) -> None:
    async def main() -> None:
        async with rig(config(ranker=ranker)) as r:
            described = json.loads((await r.client.get("/openapi.json")).body)["paths"][route]["post"]
            body = described["requestBody"]["content"]
            assert ("application/json" in body) == (
                route == "/v1/weights" or "candidate_inputs" not in ranker
            )
            (example,) = body[MEDIA_TYPE]["examples"].values()
            (parameter,) = described["parameters"]
            assert (parameter["name"], parameter["in"]) == (LENGTH_HEADER, "header")
            headers = {LENGTH_HEADER: str(parameter["example"])}
            answer = await r.client.request("POST", route, example["value"].encode("ascii"), headers)
            assert answer.status == 200, answer.body
            assert (answer.json()["source"], answer.json()["reason"]) == ("value_network", None)
            inputs = json.loads(example["value"][: parameter["example"]])["inputs"]
            told = body[MEDIA_TYPE]["schema"]
            assert [i["name"] for i in inputs] == [t["name"] for t in told["x-tensors"]]
            for tensor in told["x-tensors"]:
                assert tensor["name"] in told["description"]
            assert set(described["responses"]["200"]["content"]) == (
                {"application/json", MEDIA_TYPE} if route == "/v1/rank" else {"application/json"}
            )

    asyncio.run(main())


def test_what_the_description_calls_required_is_required() -> None:
    async def main() -> None:
        async with rig(config(**WITH_FEATURES)) as r:
            described = json.loads((await r.client.get("/openapi.json")).body)["paths"]["/v1/rank"]["post"]
            schema = described["requestBody"]["content"][MEDIA_TYPE]["schema"]
            needed = {t["name"] for t in schema["x-tensors"] if t["required"]}
            for name in tensors():
                content, headers = encoded([t for t in tensors().values() if t[0] != name])
                status = (await send(r, content, headers)).status
                assert (status == 422) == (name in needed), (name, status)

    asyncio.run(main())


def test_weights_of_a_state_in_tensors_are_those_of_json() -> None:
    async def main() -> None:
        async with rig() as r:
            expected = (await r.client.post("/v1/weights", {"state": STATE, "request_id": "r1"})).json()
            state = list(tensors().values())[:5]
            content, headers = encoded(state, {}, id="r1")
            answer = await r.client.request("POST", "/v1/weights", content, headers | {"accept": MEDIA_TYPE})
            found = answer.json()  # a few numbers: JSON whatever is accepted
            del expected["timings_ms"], found["timings_ms"]
            assert found == expected
            for name, array in r.value.calls[1][0].items():
                np.testing.assert_array_equal(array, r.value.calls[0][0][name])
            content, headers = encoded([*state, tensors()["candidate_ids"]], {})
            refused = await r.client.request("POST", "/v1/weights", content, headers)
            assert (refused.status, "candidate_ids" in refused.json()["error"]["message"]) == (422, True)
            content, headers = encoded(state, {"k": 3})
            assert (await r.client.request("POST", "/v1/weights", content, headers)).status == 422

    asyncio.run(main())


def test_string_ids() -> None:
    async def main() -> None:
        async with rig(config(ranker={"candidates_type": "BYTES"})) as r:
            state = [t for name, t in tensors().items() if name in ("user_embedding", "context")]
            ids = ("candidate_ids", "BYTES", [3], bytes_tensor(["a", "b", "ü"]))
            content, headers = encoded([*state, ids])
            answer = await send(r, content, headers | {"accept": MEDIA_TYPE})
            assert answer.status == 200, answer.body
            length = int(answer.headers[LENGTH_HEADER])
            assert json.loads(answer.body[:length])["parameters"]["reason"] == "state_incomplete"
            assert answer.body[length:].startswith(bytes_tensor(["ü", "b", "a"]))

    asyncio.run(main())


def test_json_alone_is_not_enough_where_the_ranker_needs_features() -> None:
    async def main() -> None:
        async with rig(config(**WITH_FEATURES)) as r:
            answer = await r.client.post("/v1/rank", body())
            assert answer.status == 422
            assert "age, vector" in ErrorAnswer.model_validate_json(answer.body).error.message

    asyncio.run(main())


def changed(name: str, /, **changes: Any) -> list[Tensor]:
    whole = tensors()
    _, datatype, shape, raw = whole[name]
    whole[name] = (
        changes.get("name", name),
        changes.get("datatype", datatype),
        changes.get("shape", shape),
        changes.get("raw", raw),
    )
    return list(whole.values())


def without(name: str) -> list[Tensor]:
    return [tensor for key, tensor in tensors().items() if key != name]


@pytest.mark.parametrize(
    ("chosen", "status", "word"),
    [
        (without("candidate_ids"), 422, "candidate_ids is missing"),
        (without("vector"), 422, "vector is missing"),
        (changed("age", name="aged"), 422, "no tensor 'aged'"),
        (changed("vector", name="age"), 422, "twice"),
        (changed("age", datatype="FP64"), 422, "age is FP32"),
        (changed("age", shape=[9]), 422, "40 bytes"),
        (changed("age", shape=[2, 5]), 422, "expected shape [10]"),
        (changed("vector", shape=[3, 10]), 422, "expected shape [10, 3]"),
        (changed("age", shape=[-10]), 422, "negative"),
        (changed("age", shape=[1.5]), 422, "whole numbers"),
        (changed("age", shape=[]), 422, "shape"),
        (changed("candidate_ids", shape=[5, 2]), 422, "[candidates]"),
        (changed("candidate_ids", raw=np.array([7] * 10).tobytes()), 422, "twice"),
        (changed("candidate_ids", shape=[21], raw=b"\0" * 168), 413, "candidates"),
        (changed("candidate_ids", shape=[0], raw=b""), 422, "candidates"),
        (changed("context", raw=b"\xff\xff\xff\xff"), 422, "context"),
        (changed("context", shape=[1]), 422, "context"),
        (changed("history_action", raw=b"\1\0\0\0\xff", shape=[1]), 422, "UTF-8"),
        (changed("history_embedding", shape=[31, 3], raw=b"\0" * 372), 413, "history"),
        (changed("history_action", shape=[31], raw=b"\0" * 124), 413, "history"),
        (changed("user_embedding", shape=[0, 2**63], raw=b""), 422, "too large"),
        (changed("history_embedding", shape=[0, *[2**31] * 3], raw=b""), 422, "too large"),
    ],
)
def test_bad_tensors(chosen: list[Tensor], status: int, word: str) -> None:
    async def main() -> None:
        limits = {"candidates": 20, "history": 30}
        async with rig(config(limits=limits, **WITH_FEATURES)) as r:
            answer = await send(r, *encoded(chosen))
            message = ErrorAnswer.model_validate_json(answer.body).error.message
            assert (answer.status, word in message) == (status, True), message
            assert r.ranker.calls == []

    asyncio.run(main())


def test_a_new_user_has_an_empty_history() -> None:
    async def main() -> None:
        async with rig() as r:
            whole = {k: t for k, t in tensors().items() if k not in FEATURES}
            whole["history_embedding"] = ("history_embedding", "FP32", [0, 3], b"")
            whole["history_action"] = ("history_action", "BYTES", [0], b"")
            whole["history_age_s"] = ("history_age_s", "FP32", [0], b"")
            answer = await send(r, *encoded(list(whole.values())))
            assert (answer.status, answer.json()["reason"]) == (200, None)

    asyncio.run(main())


@pytest.mark.parametrize("chosen", [without("user_embedding"), changed("history_age_s", shape=[1, 2])])
def test_a_state_that_is_wrong_is_a_fallback_where_the_ranker_can_do_without(chosen: list[Tensor]) -> None:
    async def main() -> None:
        settings_ = {"ranker": {"candidate_inputs": FEATURES, "state_inputs": {}}}
        async with rig(config(**settings_)) as r:
            answer = await send(r, *encoded(chosen))
            assert answer.status == 200, answer.body
            assert answer.json()["reason"] in ("state_incomplete", "state_invalid")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("content", "length", "status"),
    [
        (b"{}", "0", 400),
        (b"{}", "3", 400),
        (b"{}", "x", 400),
        (b"{}", "-1", 400),
        (b"{}", "²", 400),
        (b"{}", "1" * 5000, 400),
        (b"[]", "2", 400),
        (b"{]", "2", 400),
        (b"{}", "2", 422),
        (b'{"x":1}', "7", 422),
        (b'{"inputs":[1]}', "14", 422),
        (b'{"inputs":{}}', "13", 422),
    ],
)
def test_bad_headers(content: bytes, length: str, status: int) -> None:
    async def main() -> None:
        async with rig() as r:
            answer = await r.client.request("POST", "/v1/rank", content, {LENGTH_HEADER: length})
            assert answer.status == status, answer.body
            ErrorAnswer.model_validate_json(answer.body)

    asyncio.run(main())


def test_leftovers_and_truncation_and_parameters() -> None:
    async def main() -> None:
        async with rig(config(**WITH_FEATURES)) as r:
            content, headers = encoded(list(tensors().values()))
            assert (await send(r, content + b"\0", headers)).status == 400
            assert (await send(r, content[:-1], headers)).status == 400
            for parameters in ([], {"surprise": 1}, {"k": 0}, {"k": "3"}, {"control": 1}, {"user_id": 7}):
                answer = await send(r, *encoded(list(tensors().values()), parameters))
                assert answer.status == 422, parameters

    asyncio.run(main())


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.data())
def test_whatever_is_torn_or_flipped_nothing_breaks(data: st.DataObject) -> None:
    async def main() -> None:
        async with rig(config(**WITH_FEATURES)) as r:
            content, headers = encoded(list(tensors().values()))
            for _ in range(20):
                torn = bytearray(content)
                for _ in range(data.draw(st.integers(1, 4))):
                    torn[data.draw(st.integers(0, len(torn) - 1))] = data.draw(st.integers(0, 255))
                cut = torn[: data.draw(st.integers(0, len(torn)))] if data.draw(st.booleans()) else torn
                answer = await send(r, bytes(cut), headers)
                assert answer.status in (200, 400, 413, 422), answer.body

    asyncio.run(main())


@pytest.mark.parametrize(
    "inputs",
    [
        {"user_embedding": {"datatype": "FP32"}},
        {"candidate_ids": {"datatype": "FP32"}},
        {"x": {"datatype": "BYTES"}},
        {"x": {"datatype": "FP32", "shape": [0]}},
    ],
)
def test_impossible_candidate_inputs(inputs: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RankerConfig.model_validate({"addresses": ["a:1"], "candidate_inputs": inputs})
