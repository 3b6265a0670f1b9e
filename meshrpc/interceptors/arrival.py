"""Calls that need no handler: too late, or meant for somebody else.

Both are refused as not executed, so that the caller may send them elsewhere at once.
"""

from __future__ import annotations

import grpc

from meshrpc.interceptors.compose import Refused, ServerInterceptor
from meshrpc.interceptors.server_call import ServerCall
from meshrpc.wire import NOT_EXECUTED, TARGET, WRONG_TARGET, Metadata

_NOT_EXECUTED: Metadata = ((NOT_EXECUTED, "1"),)
_WRONG_TARGET: Metadata = ((NOT_EXECUTED, WRONG_TARGET),)


class DeadlineInterceptor(ServerInterceptor):
    """Refuses calls whose caller has stopped waiting before they arrived."""

    def begin(self, call: ServerCall) -> None:
        """Refuse a call without time left."""
        if call.time_remaining() == 0.0:
            raise Refused(
                grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed on the way", _NOT_EXECUTED
            )


class TargetInterceptor(ServerInterceptor):
    """Refuses calls meant for another instance: one that had this address before."""

    def __init__(self, instance_id: str) -> None:
        super().__init__()
        self.instance_id = instance_id

    def begin(self, call: ServerCall) -> None:
        """Refuse a call that names another instance."""
        for key, value in call.metadata:
            if key == TARGET and value != self.instance_id:
                raise Refused(
                    grpc.StatusCode.UNAVAILABLE,
                    f"this is {self.instance_id}, not {value!s:.100}",
                    _WRONG_TARGET,
                )
