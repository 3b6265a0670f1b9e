"""meshrpc: a service mesh inside your Python gRPC process.

service = meshrpc.Service("payment")            # serves, registers, drains
channel = service.channel("order")              # a grpc.aio.Channel to a service
async with meshrpc.Mesh("shell") as mesh: ...   # client only
"""

from __future__ import annotations

import os

# gRPC's core would write a line to stderr whenever a peer goes away. Read when it first starts.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

__version__ = "0.1.0"


from meshrpc.client.call_options import call_options
from meshrpc.client.channel import Channel
from meshrpc.errors import (
    ControlError,
    MeshError,
    PolicyError,
    RegistryError,
    RpcError,
    SettingsError,
)
from meshrpc.interceptors.server_call import ServerCall, current_call, detached
from meshrpc.mesh import Mesh
from meshrpc.registry.instance import Instance
from meshrpc.registry.registry import Registry
from meshrpc.server.service import Service
from meshrpc.settings import Settings

__all__ = [
    "Channel",
    "ControlError",
    "Instance",
    "Mesh",
    "MeshError",
    "PolicyError",
    "Registry",
    "RegistryError",
    "RpcError",
    "ServerCall",
    "Service",
    "Settings",
    "SettingsError",
    "call_options",
    "current_call",
    "detached",
]
