"""A mesh is left at once, whatever its control service does in that moment."""

import asyncio

import meshrpc
from meshrpc.subscription import Subscription


async def test_a_mesh_is_left_though_the_stream_fails_in_that_moment(tmp_path, monkeypatch):
    """A reader of grpcio's that is cancelled when its call has just failed raises the call's error,
    and the cancellation is lost; what makes the stream again for ever must end all the same."""
    reading = asyncio.Event()

    async def converse(_subscription):
        was_lost = reading.is_set()
        reading.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if was_lost:
                raise
            raise ConnectionError("the stream failed just now") from None

    monkeypatch.setattr(Subscription, "_converse", converse)
    async with asyncio.timeout(5):
        async with meshrpc.Mesh("visitor", control="127.0.0.1:1", state_dir=tmp_path):
            await reading.wait()
