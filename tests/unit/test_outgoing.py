"""What a process has still to tell control: one place for each thing, and the newest in it."""

from __future__ import annotations

import asyncio
import tracemalloc
from functools import partial

from meshrpc.outgoing import MAX_ANSWERS, Outgoing
from meshrpc.v1 import control_pb2

CHANGES = 10_000


def report(grant: int) -> control_pb2.SubscribeRequest:
    """As large as one that a process with some limits sends."""
    claims = [control_pb2.QuotaReport.Claim(limit=f"limit-{n}", key=b"=key") for n in range(20)]
    return control_pb2.SubscribeRequest(quota=control_pb2.QuotaReport(grant=grant, claims=claims))


def acknowledgement(nonce: str) -> control_pb2.SubscribeRequest:
    answer = control_pb2.Acknowledgement(nonce=nonce)
    return control_pb2.SubscribeRequest(acknowledgement=answer)


def answer(id_: str) -> control_pb2.SubscribeRequest:
    return control_pb2.SubscribeRequest(answer=control_pb2.Answer(id=id_))


async def written(outgoing: Outgoing) -> list[control_pb2.SubscribeRequest]:
    """All that waits, in the order in which it goes out."""
    return [await outgoing.next() for _ in range(len(outgoing))]


async def test_of_each_kind_the_newest_goes_out_where_the_oldest_stood():
    """Nothing is said twice, and what changes all the time keeps nothing else waiting."""
    outgoing = Outgoing()
    outgoing.tell("quota", partial(report, 1))
    outgoing.tell("acknowledgement", partial(acknowledgement, "1"))
    outgoing.tell("quota", partial(report, 2))
    assert await written(outgoing) == [report(2), acknowledgement("1")]
    assert len(outgoing) == 0


async def test_what_is_said_is_what_holds_when_its_turn_comes():
    """Not what held when it got in line; what need not be said any more is not."""
    outgoing = Outgoing()
    nonces = ["1"]
    outgoing.tell("interest", lambda: None)
    outgoing.tell("acknowledgement", lambda: acknowledgement(nonces[-1]))
    nonces.append("2")
    async with asyncio.timeout(10):
        assert await outgoing.next() == acknowledgement("2")


async def test_what_cannot_be_said_silences_nothing_else(caplog):
    """It is logged; without the answer after it control would give this process up."""
    outgoing = Outgoing()
    outgoing.tell("interest", lambda: 1 / 0)
    outgoing.tell("acknowledgement", partial(acknowledgement, "1"))
    async with asyncio.timeout(10):
        assert await outgoing.next() == acknowledgement("1")
    assert "cannot tell control interest" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_it_waits_until_there_is_something():
    """Also after a time in which there was something."""
    outgoing = Outgoing()
    for nonce in ("1", "2"):
        waiting = asyncio.create_task(outgoing.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        outgoing.tell("acknowledgement", partial(acknowledgement, nonce))
        async with asyncio.timeout(10):
            assert await waiting == acknowledgement(nonce)


async def test_each_question_is_answered_and_of_too_many_the_oldest_is_not():
    """Whoever asked it has long stopped waiting."""
    outgoing = Outgoing()
    outgoing.tell("acknowledgement", partial(acknowledgement, "1"))
    for number in range(MAX_ANSWERS + 5):
        outgoing.answer(str(number), partial(answer, str(number)))
    told = await written(outgoing)
    assert told == [
        acknowledgement("1"),
        *(answer(str(number)) for number in range(5, MAX_ANSWERS + 5)),
    ]
    outgoing.answer("again", partial(answer, "again"))
    assert await written(outgoing) == [answer("again")]


async def test_ten_thousand_changes_take_no_more_memory_than_a_thousand():
    """Nobody reads meanwhile; the newest of everything goes out once somebody does."""
    outgoing = Outgoing()
    sizes = []
    tracemalloc.start()
    try:
        for number in range(1, CHANGES + 1):
            outgoing.tell("quota", partial(report, number))
            outgoing.tell("acknowledgement", partial(acknowledgement, str(number)))
            outgoing.answer(f"question-{number}", partial(answer, f"question-{number}"))
            if number in (CHANGES // 10, CHANGES):
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert len(outgoing) == 2 + MAX_ANSWERS
    # One entry for each change would be ten megabytes.
    assert sizes[1] - sizes[0] < 20_000
    told = await written(outgoing)
    assert told[:2] == [report(CHANGES), acknowledgement(str(CHANGES))]
    assert told[-1] == answer(f"question-{CHANGES}")
