"""The log of events that control keeps, and what it takes for one."""

from __future__ import annotations

import pytest

from meshrpc.control.events import EventLog, ReportedEvent, parse_events
from meshrpc.workers.events import MAX_TEXT, Event, EventKind

GIVEN = {
    "id": "f00-1",
    "event": "died",
    "service": "payment",
    "namespace": "default",
    "worker": 2,
    "instance": "payment-3f9a1c2e",
    "pid": 123,
    "reason": "killed by SIGKILL",
    "time": "2026-09-21T14:13:20.250Z",
}


def reported(**fields) -> ReportedEvent:
    (event,) = parse_events({**GIVEN, "id": None, **fields})
    return event


def reasons(found) -> list[str]:
    return [event.reported.reason for event in found]


def test_an_event_is_shown_as_it_was_reported():
    """What goes in comes out, with a number and the time at which it came."""
    log = EventLog(started=1_790_000_000.0)
    (event,) = parse_events(GIVEN)
    assert log.add(event, 1_790_000_001.5)
    (logged,) = log.select(namespace="default")
    assert logged.to_json() == {
        **GIVEN,
        "sequence": 1_790_000_000_001,
        "received": "2026-09-21T14:13:21.500Z",
    }
    assert repr(log) == "<EventLog 1 events, the last is 1790000000001>"


def test_what_a_supervisor_reports_is_taken():
    """The reporter's own form, with every field at its longest or at nothing, is an event here."""
    for kind in EventKind:
        event = Event(
            kind=kind,
            service="s" * 128,
            namespace="n" * 128,
            worker=None,
            instance=None,
            pid=None,
            reason="r" * (MAX_TEXT + 1),
            at=0.0,
        )
        (taken,) = parse_events([{"id": "f00-1", **event.to_json()}])
        assert (taken.event, taken.worker, taken.reason) == (kind, None, "r" * MAX_TEXT)


def test_the_newest_events_are_kept():
    """Past its capacity the oldest event goes, for each that comes."""
    log = EventLog(started=0.0, capacity=3)
    for number in range(5):
        log.add(reported(reason=str(number)), 0.0)
    assert reasons(log.select(namespace="default")) == ["2", "3", "4"]


def test_an_event_that_comes_twice_is_kept_once():
    """Its id says so; without one nothing can be known, and when it is gone it may come again."""
    log = EventLog(started=0.0, capacity=2)
    assert log.add(reported(id="a-1"), 0.0)
    assert not log.add(reported(id="a-1", reason="again"), 0.0)
    assert log.add(reported(), 0.0)
    assert log.add(reported(), 0.0)
    assert log.add(reported(id="a-1"), 0.0)


def test_events_are_chosen_by_namespace_service_number_and_count():
    """`since` is the last one known, `limit` counts from the newest, and order stays."""
    log = EventLog(started=0.0)
    for number, (namespace, service) in enumerate(
        [("a", "x"), ("b", "x"), ("a", "y"), ("a", "x"), ("a", "x")], start=1
    ):
        log.add(reported(namespace=namespace, service=service, reason=str(number)), 0.0)
    assert reasons(log.select(namespace="a")) == ["1", "3", "4", "5"]
    assert reasons(log.select(namespace="b")) == ["2"]
    assert reasons(log.select(namespace="a", service="x")) == ["1", "4", "5"]
    assert reasons(log.select(namespace="a", since=3)) == ["4", "5"]
    assert reasons(log.select(namespace="a", limit=2)) == ["4", "5"]
    assert log.select(namespace="a", limit=0) == []
    assert log.select(namespace="a", since=5) == []


def test_numbers_go_on_growing_after_a_restart():
    """A reader that knows a number of the log before hears of everything in the next one."""
    before = EventLog(started=1_000.0)
    for _ in range(500):
        before.add(reported(), 0.0)
    last = before.select(namespace="default")[-1].sequence
    after = EventLog(started=1_001.0)
    after.add(reported(), 0.0)
    assert len(after.select(namespace="default", since=last)) == 1


def test_only_event_service_and_time_have_to_be_said():
    """The rest is nothing, and the default namespace; a field of a later release is passed over."""
    (event,) = parse_events(
        {"event": "moved", "service": "payment", "time": GIVEN["time"], "later": [1]}
    )
    assert event == ReportedEvent(
        id=None,
        event="moved",
        service="payment",
        namespace="default",
        worker=None,
        instance=None,
        pid=None,
        reason="",
        at=1_790_000_000.25,
    )


def test_a_reason_becomes_one_printable_line():
    """Line ends, escape sequences and half characters are spaces, whoever shows it later."""
    assert reported(reason="a\nb\x1b[2J\x9b\ud800\u2028é").reason == "a b [2J   é"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"event": "It died"}, "event: 'It died': an event is a word in snake_case"),
        ({"event": None}, "event: it is missing"),
        ({"service": "a b"}, "service: 'a b': a name has letters"),
        ({"service": 5}, "service: 5: this is text, not int"),
        ({"namespace": "n" * 200}, f"namespace: '{'n' * 59}...: a name has"),
        ({"worker": 0}, "worker: 0: this is a number above 0"),
        ({"worker": True}, "worker: True: this is a number above 0"),
        ({"pid": 2**31}, "pid: 2147483648: this is a number above 0"),
        ({"pid": "7"}, "pid: '7': this is a number above 0"),
        ({"instance": "a\n"}, "instance: 'a\\n': an id is printable text"),
        ({"reason": "r" * 1001}, "reason: 'rrr"),
        ({"reason": ["r"]}, "reason: a list: a reason is text"),
        ({"time": 1.0}, "time: 1.0: a time is written as"),
        ({"time": "now"}, "time: 'now': a time is written as"),
        ({"id": "\x1b"}, "id: '\\x1b': a name has letters"),
    ],
)
def test_what_is_wrong_with_an_event_is_said(fields, said):
    """Each error names the place, the value, cut and printable, and the rule."""
    with pytest.raises(ValueError) as error:
        parse_events([GIVEN, {**GIVEN, **fields}])
    assert str(error.value).startswith(f"[1].{said}")
    assert str(error.value).isprintable()
    with pytest.raises(ValueError) as error:
        parse_events({**GIVEN, **fields})
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(("document", "place"), [(5, "the document"), ([[]], r"\[0\]")])
def test_what_is_no_object_is_no_event(document, place):
    """The error says where it stands."""
    with pytest.raises(ValueError, match=f"^{place}: an event is a JSON object"):
        parse_events(document)
