"""The methods that the fault tests call: `Get` may be repeated by its proto, `Put` may not.

The proto exists only as a descriptor in this process's pool, which is where the mesh looks for what
a method declares; messages are plain bytes.
"""

from google.protobuf import descriptor_pb2, descriptor_pool

SERVICE = "faults.Target"
GET = f"/{SERVICE}/Get"
PUT = f"/{SERVICE}/Put"

_LEVELS = {
    "Get": descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS,
    "Put": descriptor_pb2.MethodOptions.IDEMPOTENCY_UNKNOWN,
}


def declare():
    """Make the descriptors known to this process."""
    pool = descriptor_pool.Default()
    file = descriptor_pb2.FileDescriptorProto(
        name="tests/faults.proto", package="faults", syntax="proto3"
    )
    file.message_type.add(name="Bytes")
    service = file.service.add(name="Target")
    for name, level in _LEVELS.items():
        method = service.method.add(
            name=name, input_type=".faults.Bytes", output_type=".faults.Bytes"
        )
        method.options.idempotency_level = level
    pool.AddSerializedFile(file.SerializeToString())


declare()
