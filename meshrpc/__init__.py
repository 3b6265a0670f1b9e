"""meshrpc: a service mesh inside your Python gRPC process.

service = meshrpc.Service("payment")            # serves, registers, drains
channel = service.channel("order")              # a grpc.aio.Channel to a service
async with meshrpc.Mesh("shell") as mesh: ...   # client only
"""

from __future__ import annotations

import importlib
import os

# gRPC's core would write a line to stderr whenever a peer goes away. Read when it first starts.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

__version__ = "0.1.0"

TYPE_CHECKING = False  # what type checkers know by its name; `typing` is not imported for it
if TYPE_CHECKING:
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
else:
    _HOMES = {
        "call_options": "client.call_options",
        "Channel": "client.channel",
        **dict.fromkeys(("ControlError", "MeshError", "PolicyError"), "errors"),
        **dict.fromkeys(("RegistryError", "RpcError", "SettingsError"), "errors"),
        **dict.fromkeys(("ServerCall", "current_call", "detached"), "interceptors.server_call"),
        "Mesh": "mesh",
        "Instance": "registry.instance",
        "Registry": "registry.registry",
        "Service": "server.service",
        "Settings": "settings",
    }

    def __getattr__(name: str) -> object:
        """Import what is named when it is first asked for (PEP 562).

        To import all of it takes half a second, and every module of this package begins here: the
        command line has to be able to say what Ctrl-C does before that.
        """
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


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
