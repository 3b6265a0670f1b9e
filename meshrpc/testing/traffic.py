"""What moves in a `LocalMesh`, so that its virtual clock does not outrun it.

Calls under way are counted where the mesh has them anyway, at its clients and its servers: what
one side has and the other has not is on its way, however long a busy machine takes over it. The
messages of streams show only as they pass the proxies. What a handler waits for in another thread
(`asyncio.to_thread`) is counted; real time that it spends in any other way is not seen at all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc

from meshrpc.client.destination import Destination
from meshrpc.client.endpoint import Endpoint
from meshrpc.mesh import Mesh
from meshrpc.testing.local_instance import LocalInstance

_CONNECTING = (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING)


class LocalTraffic:
    """The traffic of one `LocalMesh`, as its clock asks for it.

    Args:
        meshes: returns every member, as a client.
        instances: returns every instance.
    """

    def __init__(
        self,
        meshes: Callable[[], Iterable[Mesh]],
        instances: Callable[[], Iterable[LocalInstance]],
    ) -> None:
        self._meshes = meshes
        self._instances = instances
        self._moved = 0
        self._jobs = 0

    def __repr__(self) -> str:
        state = "under way" if self.is_under_way() else "silent"
        return f"<LocalTraffic {state} moved={self._moved} jobs={self._jobs}>"

    def on_move(self) -> None:
        """Take note that something has passed a proxy."""
        self._moved += 1

    def is_under_way(self) -> bool:
        """Return whether any call is not over, at its caller or at a server."""
        return any(
            _calls(destination) for mesh in self._meshes() for destination in mesh.destinations
        ) or any(self._handled())

    def called(self) -> list[str]:
        """Return the services, by name, to which calls are under way."""
        return sorted(
            {
                destination.service
                for mesh in self._meshes()
                for destination in mesh.destinations
                if _calls(destination)
            }
        )

    def is_busy(self) -> bool:
        """Return whether something is on its way of which it is certain that it will arrive.

        That is: a thread works for the event loop; a server is being stopped; where no fault holds,
        a caller connects, or has more calls pending at an instance than that handles.
        """
        if self._jobs > 0 or any(each.is_finishing for each in self._instances()):
            return True
        sound = {each.id: each.serving for each in self._instances() if each.is_sound}
        pending = dict.fromkeys(sound, 0)
        for mesh in self._meshes():
            for destination in mesh.destinations:
                for endpoint in _endpoints(destination):
                    if endpoint.instance.id not in sound:
                        continue
                    if endpoint.state in _CONNECTING and _calls(destination):
                        return True
                    pending[endpoint.instance.id] += endpoint.pending
        return any(
            serving is not None and pending[id_] > serving.active_calls
            for id_, serving in sound.items()
        )

    def progress(self) -> object:
        """Return what has passed, what has become of calls, and how endpoints stand."""
        return (
            self._moved,
            self._jobs,
            self._handled(),
            [
                (_calls(destination), [endpoint.state for endpoint in destination.endpoints])
                for mesh in self._meshes()
                for destination in mesh.destinations
            ],
        )

    def _handled(self) -> list[int]:
        """Return how many calls each instance handles."""
        serving = (each.serving for each in self._instances())
        return [each.active_calls for each in serving if each is not None]

    @contextlib.contextmanager
    def counting_threads(self) -> Iterator[None]:
        """Count what the running loop has other threads do, where the loop lets itself be asked."""
        loop: Any = asyncio.get_running_loop()
        run = loop.run_in_executor
        is_counted = "run_in_executor" in getattr(loop, "__dict__", ())  # by another mesh

        def run_counted(*arguments: Any) -> asyncio.Future[Any]:
            job: asyncio.Future[Any] = run(*arguments)
            self._jobs += 1
            job.add_done_callback(self._on_job_done)
            return job

        try:
            loop.run_in_executor = run_counted
        except AttributeError:  # not a loop of asyncio's own
            yield
            return
        try:
            yield
        finally:
            if is_counted:
                loop.run_in_executor = run
            else:
                del loop.run_in_executor

    def _on_job_done(self, _job: asyncio.Future[Any]) -> None:
        self._jobs -= 1


def _calls(destination: Destination) -> int:
    """Return how many calls are under way, those that wait for an endpoint or a retry included."""
    return destination.waiting + sum(endpoint.pending for endpoint in _endpoints(destination))


def _endpoints(destination: Destination) -> tuple[Endpoint, ...]:
    """Return the endpoints, those that are being closed included."""
    return (*destination.endpoints, *destination.closing)
