"""The key of a call is what its metadata or its request says, as text, or nothing."""

from types import SimpleNamespace

import pytest
from google.protobuf import api_pb2, descriptor_pb2, type_pb2, wrappers_pb2

from meshrpc.policy.hash_key import first_value, read_key
from meshrpc.policy.model import HashKey, KeySource


def of_metadata(*metadata):
    return read_key(HashKey(KeySource.METADATA, "x-user"), None, metadata)


def of_field(path, request):
    return read_key(HashKey(KeySource.FIELD, path), request, (("x-user", "not this"),))


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ((), None),
        ((("x-users", "a"),), None),
        ((("a", "b"), ("x-user", "7"), ("x-user", "8")), "7"),
        ((("x-user", b"7"),), "7"),
        ((("x-user", ""),), None),
        ((("x-user", ""), ("x-user", "8")), None),
    ],
)
def test_the_first_value_of_a_metadata_key_counts(metadata, key):
    """As text, also where grpcio was given bytes; an empty one is no key."""
    assert of_metadata(*metadata) == key


@pytest.mark.parametrize(
    ("path", "request_", "key"),
    [
        # text, numbers, enums, truth values, bytes
        ("name", api_pb2.Api(name="a"), "a"),
        ("value", wrappers_pb2.Int64Value(value=-7), "-7"),
        ("value", wrappers_pb2.DoubleValue(value=0.5), "0.5"),
        ("kind", type_pb2.Field(kind=type_pb2.Field.TYPE_INT64), "3"),
        ("packed", type_pb2.Field(packed=True), "true"),
        ("value", wrappers_pb2.BoolValue(value=False), "false"),
        ("value", wrappers_pb2.BytesValue(value=b"\x00\xff"), "00ff"),
        # a path
        (
            "source_context.file_name",
            api_pb2.Api(source_context={"file_name": "f"}),
            "f",
        ),
        # nothing there: empty, without presence at its zero, not set, no such field
        ("name", api_pb2.Api(), None),
        ("value", wrappers_pb2.BytesValue(), None),
        ("value", wrappers_pb2.Int64Value(), "0"),
        ("number", descriptor_pb2.FieldDescriptorProto(), None),
        ("number", descriptor_pb2.FieldDescriptorProto(number=0), "0"),
        ("source_context.file_name", api_pb2.Api(), None),
        ("user.id", api_pb2.Api(), None),
        ("name.id", api_pb2.Api(name="a"), None),
        # no scalars
        ("source_context", api_pb2.Api(source_context={"file_name": "f"}), None),
        ("methods", api_pb2.Api(methods=[{"name": "m"}]), None),
        ("methods.name", api_pb2.Api(methods=[{"name": "m"}]), None),
        # what is no field of the message, though Python has such an attribute
        ("ByteSize", api_pb2.Api(name="a"), None),
        ("DESCRIPTOR.name", api_pb2.Api(name="a"), None),
        # requests that are no protobuf messages
        ("user.id", SimpleNamespace(user=SimpleNamespace(id=7)), "7"),
        ("user.id", {"user": {"id": 7}}, None),
        ("user.id", iter([api_pb2.Api()]), None),
        ("user.id", None, None),
    ],
)
def test_a_field_of_the_request_is_a_key(path, request_, key):
    """Scalars as text; whatever else stands there, or nothing, is no key."""
    assert of_field(path, request_) == key


def test_looking_for_a_key_changes_no_request():
    """Not even the parts of a message that are made when they are read."""
    request = api_pb2.Api()
    of_field("source_context.file_name", request)
    assert request.ByteSize() == 0
    assert not request.HasField("source_context")


def test_a_value_may_be_absent_or_empty():
    """`first_value` tells the two apart."""
    assert first_value((("k", ""),), "k") == ""
    assert first_value((("k", ""),), "l") is None
