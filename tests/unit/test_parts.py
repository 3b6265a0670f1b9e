"""Messages joined from parts that are serialised already."""

from __future__ import annotations

import pytest

from meshrpc.control.parts import key
from meshrpc.v1 import control_pb2

INSTANCES = control_pb2.Push.DESCRIPTOR.fields_by_name["instances"].number
QUESTIONS = control_pb2.Push.DESCRIPTOR.fields_by_name["questions"].number


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 16_383, 16_384, 2_097_152, 3_000_000])
def test_a_message_that_is_joined_reads_as_one_that_was_made(size):
    """Whatever the size of its parts, and whatever stands before and between them."""
    parts = [control_pb2.InstanceSet(service="x" * size), control_pb2.InstanceSet(version=7)]
    question = control_pb2.Question(id="1")
    joined = control_pb2.Push(nonce="1").SerializeToString()
    for number, part in ((INSTANCES, parts[0]), (QUESTIONS, question), (INSTANCES, parts[1])):
        data = part.SerializeToString()
        joined += key(number, len(data)) + data
    made = control_pb2.Push(nonce="1", instances=parts, questions=[question])
    assert control_pb2.Push.FromString(joined) == made
