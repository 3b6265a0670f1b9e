"""Claims about how long a message may take, and one that comes as its call is given up."""

import asyncio

import grpc
import pytest

from meshrpc.errors import SettingsError
from meshrpc.server.request_arrival import OPTION, RequestArrival, request_timeout
from meshrpc.wire import NOT_EXECUTED


class Call:
    """One call, as grpcio's context shows it; `message` is what will have been read."""

    def __init__(self):
        self.message = asyncio.get_running_loop().create_future()
        self.told = None

    async def read(self):
        return await self.message

    async def abort(self, *status):
        self.told = status
        await asyncio.sleep(0)
        raise grpc.aio.AbortError("Locally aborted.")


@pytest.mark.parametrize("message", [b"late", b"", grpc.aio.EOF])
@pytest.mark.parametrize("end", ["_look", "cut"])
async def test_a_call_that_was_told_that_it_never_ran_does_not_run(end, message):
    """Its caller tries it elsewhere: it would run twice. After a pause both are there at once."""
    served = []

    async def serve(request, _context):
        served.append(request)

    arrival = RequestArrival(0.0)
    handler = arrival.around(grpc.unary_unary_rpc_method_handler(serve))
    call = Call()
    serving = asyncio.ensure_future(handler.stream_unary(None, call))
    await asyncio.sleep(0)
    call.message.set_result(message)
    getattr(arrival, end)()
    with pytest.raises(grpc.aio.AbortError):
        await serving
    assert (NOT_EXECUTED, "1") in call.told[2]
    assert served == []
    assert repr(arrival) == "<RequestArrival within=0 waiting=0>"
    assert not arrival._ending


@pytest.mark.parametrize("given", [-1, 0.5, "60000", None])
def test_a_time_that_is_none_is_refused(given):
    """Below zero it would end every call at once."""
    with pytest.raises(SettingsError, match=f"{OPTION}={given!r}: milliseconds"):
        request_timeout({OPTION: given})
