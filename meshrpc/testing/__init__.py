"""For tests of services: a mesh in one process, on a clock that stands still.

async with LocalMesh() as mesh:                       # or the pytest fixture `local_mesh`
    payment = await mesh.script("payment", PAYMENT, instances=2)
    payment[1].fail("Charge", grpc.StatusCode.UNAVAILABLE)
    payment[2].fault(blackhole())
    await mesh.clock.advance(60)
"""

from __future__ import annotations

from meshrpc.testing.clock import VirtualClock
from meshrpc.testing.faults import blackhole, delay, drop, flap, refuse
from meshrpc.testing.local_instance import LocalInstance
from meshrpc.testing.local_mesh import LocalMesh
from meshrpc.testing.received import ReceivedCall
from meshrpc.testing.script_book import Failure
from meshrpc.testing.scripted import ScriptedInstance, ScriptedService

__all__ = [
    "Failure",
    "LocalInstance",
    "LocalMesh",
    "ReceivedCall",
    "ScriptedInstance",
    "ScriptedService",
    "VirtualClock",
    "blackhole",
    "delay",
    "drop",
    "flap",
    "refuse",
]
