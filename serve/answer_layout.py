"""An answer read by what is known of the one before: the same protobuf but for the tensors' bytes.

Of a ``ModelInferResponse`` everything but ``raw_output_contents`` (model, version, names, types and shapes of
the outputs) stays the same from answer to answer of one size, and these contents come last::

    head ‖ 0x32 ‖ varint(len) ‖ bytes ‖ 0x32 ‖ varint(len) ‖ bytes …

So the first answer is parsed by protobuf, and its layout kept. An answer that has this head, and these tags
and lengths in these places, is the same message with other bytes; any other is parsed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from serve.wire import Answer

LAYOUTS = 256
"""Sizes of answers of which the layout is kept."""

_RAW_OUTPUT_CONTENTS = b"\x32"
"""Field 6, length-delimited."""


def varint(value: int) -> bytes:
    """A length as protobuf writes it: seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@dataclass(frozen=True)
class Slot:
    """One output: what stands before its content, and where that lies."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    mark: bytes
    mark_at: int
    begin: int
    end: int


@dataclass(frozen=True)
class Layout:
    """Where everything lies in answers of one size."""

    head: bytes
    version: str
    slots: tuple[Slot, ...]

    def read(self, answer: bytes) -> Answer | None:
        """What it says; None: the answer is another message."""
        if not answer.startswith(self.head):
            return None
        found = {}
        for slot in self.slots:
            if not answer.startswith(slot.mark, slot.mark_at):
                return None
            found[slot.name] = (slot.datatype, slot.shape, answer[slot.begin : slot.end])
        return Answer(self.version, found)


def layout_of(message: Any, answer: bytes) -> Layout | None:
    """The layout of an answer that was parsed; None: its contents do not all come last."""
    marks = [_RAW_OUTPUT_CONTENTS + varint(len(raw)) for raw in message.raw_output_contents]
    at = len(answer) - sum(map(len, marks)) - sum(map(len, message.raw_output_contents))
    head, slots = answer[: max(0, at)], []
    for tensor, mark, raw in zip(message.outputs, marks, message.raw_output_contents, strict=True):
        begin = at + len(mark)
        slots.append(
            Slot(tensor.name, tensor.datatype, tuple(tensor.shape), mark, at, begin, begin + len(raw))
        )
        at = begin + len(raw)
    layout = Layout(head, message.model_version, tuple(slots))
    expected = service_pb2.ModelInferResponse()
    expected.CopyFrom(message)
    del expected.raw_output_contents[:]
    same = service_pb2.ModelInferResponse.FromString(head) == expected
    contents = dict(zip((slot.name for slot in slots), message.raw_output_contents, strict=True))
    read = layout.read(answer) if same else None
    fits = read is not None and {name: raw for name, (_, _, raw) in read.outputs.items()} == contents
    return layout if fits else None


class AnswerReader:
    """Answers, each read as cheaply as it can be had."""

    def __init__(self) -> None:
        self._layouts: dict[int, Layout] = {}

    def read(self, answer: bytes) -> Answer:
        """Its version and its outputs by name.

        Raises:
            DecodeError: no ``ModelInferResponse``.
            ValueError: not one content for each output.
        """
        layout = self._layouts.get(len(answer))
        if layout is not None and (found := layout.read(answer)) is not None:
            return found
        message = service_pb2.ModelInferResponse.FromString(answer)
        pairs = zip(message.outputs, message.raw_output_contents, strict=True)
        outputs = {tensor.name: (tensor.datatype, tuple(tensor.shape), raw) for tensor, raw in pairs}
        if len(self._layouts) >= LAYOUTS:
            self._layouts.clear()
        try:
            layout = layout_of(message, answer)
        except DecodeError:  # the head alone is no message: such an answer is parsed each time
            layout = None
        if layout is not None:
            self._layouts[len(answer)] = layout
        return Answer(message.model_version, outputs)
