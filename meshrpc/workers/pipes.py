"""A worker's ends of the two pipes that join it to its supervisor.

The reports go up as lines of JSON, and their loss must hold up nobody. The lifeline comes down:
its end is the supervisor's end, and bounds what is left of the worker's life.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from meshrpc.registry.instance import Instance
from meshrpc.settings import control_http_urls
from meshrpc.workers.places import Load
from meshrpc.workers.process import GO_ON, STOPPING

if TYPE_CHECKING:
    from meshrpc.server.service import Service

LEAVING = 15.0
"""Seconds that stopping may take beside the grace for running calls and the shutdown hooks: 5 s
each to tell a registry that does not answer and to leave it, 3 s until callers know, and some for
the last spans."""


class Reports:
    """The pipe to the supervisor. Where that is gone, nobody is left to be told."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.is_ready = False

    def loaded(self, service: Service, *, stop_within: float) -> None:
        """Say which service this is; of it the supervisor knows only where it is found."""
        self._send(
            event="loaded",
            service=service.name,
            stop_within=stop_within,
            namespace=service.settings.namespace,
            control_http=control_http_urls(service.settings),
            shared_listen=service.settings.shared_listen,
        )

    def ready(self, instance: Instance, *, has_free_port: bool) -> None:
        """Say that `instance` serves, and how it can be replaced."""
        self.is_ready = True
        self._send(
            event="ready",
            service=instance.service,
            id=instance.id,
            address=instance.address,
            pid=os.getpid(),
            has_free_port=has_free_port,
        )

    def load(self, load: Load) -> None:
        """Give a sign of life."""
        # The event loop must not wait for a supervisor that is frozen: this one is lost then.
        os.set_blocking(self._fd, False)
        try:
            with contextlib.suppress(BlockingIOError):
                self._send(event="load", busy=load.busy, queue_time=load.queue_time)
        finally:
            os.set_blocking(self._fd, True)

    def failed(self, error: str) -> None:
        """Say why this worker cannot serve; its end follows."""
        self._send(event="failed", error=" ".join(error.splitlines()))

    def _send(self, **report: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._fd, json.dumps(report).encode() + b"\n")


class Lifeline:
    """What bounds this process's life by its supervisor's.

    `stop_within`: seconds that it has from being told to stop, or from the supervisor's end.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._may_go_on = threading.Event()
        self.stop_within = LEAVING

    def watch(self) -> None:
        """Watch it, in a thread that a blocked event loop cannot keep from it; ends the process."""
        while (told := os.read(self._fd, 1)) == GO_ON:
            self._may_go_on.set()
        if told != STOPPING:
            # The supervisor died. Had it told us, its SIGTERM would be here too, and a second one
            # would cut the drain short.
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self.stop_within)
        os._exit(1)

    def wait_to_go_on(self) -> None:
        """Wait for the supervisor's answer; if that is no, or it dies, so does this process."""
        self._may_go_on.wait()
