"""Claims about what a supervisor says of its workers, and to whom."""

from meshrpc.workers.actions import Tell
from meshrpc.workers.announcing import Announcer
from meshrpc.workers.events import EventKind
from meshrpc.workers.logs import Who


class Reporter:
    """Keeps what it is given."""

    def __init__(self, urls):
        self.urls = tuple(urls)
        self.events = []
        self.is_started = self.is_closed = False

    def start(self):
        self.is_started = True

    def report(self, event):
        self.events.append(event)

    def close(self, within):
        self.is_closed = True


class Made(list):
    """The reporters that were made."""

    def __call__(self, urls):
        self.append(Reporter(urls))
        return self[-1]


def died(reason):
    return Tell(
        f"worker 2 {reason}",
        kind=EventKind.DIED,
        reason=reason,
        number=2,
        pid=77,
        instance="echo-1",
    )


def test_events_wait_for_the_first_worker_to_say_who_it_is():
    """Its code decides where control is, and what the service is called."""
    made, who = Made(), Who()
    announcer = Announcer("app:service", {}, who=who, make_reporter=made)
    announcer.tell(died("first"))
    assert made == []
    announcer.introduce("echo", "staging", ["http://c:7780"])
    announcer.tell(died("second"))
    announcer.introduce("echo", "staging", ["http://elsewhere:1"])
    (reporter,) = made
    assert (reporter.urls, reporter.is_started) == (("http://c:7780",), True)
    assert [event.reason for event in reporter.events] == ["first", "second"]
    event = reporter.events[0]
    assert (event.kind, event.service, event.namespace) == (EventKind.DIED, "echo", "staging")
    assert (event.worker, event.pid, event.instance) == (2, 77, "echo-1")
    assert who.service == "echo"
    announcer.close()
    assert reporter.is_closed


def test_a_crash_loop_before_anybody_spoke_is_reported_all_the_same():
    """To the control service that the environment names, under the name of the module."""
    made = Made()
    environment = {"MESHRPC_CONTROL_HTTP": "c:80", "MESHRPC_NAMESPACE": "staging"}
    announcer = Announcer("shop.app:service", environment, make_reporter=made)
    announcer.tell(died("killed by SIGKILL"))
    announcer.tell(Tell("a crash loop", kind=EventKind.CRASH_LOOP, reason="5 deaths"))
    (reporter,) = made
    assert reporter.urls == ("http://c:80",)
    assert [event.kind for event in reporter.events] == [EventKind.DIED, EventKind.CRASH_LOOP]
    assert {(e.service, e.namespace) for e in reporter.events} == {("shop.app.service", "staging")}


def test_what_waits_at_the_end_is_sent():
    """By the environment's word, if no worker ever spoke."""
    made = Made()
    announcer = Announcer("app:service", {}, make_reporter=made)
    announcer.tell(died("x"))
    announcer.close()
    (reporter,) = made
    assert reporter.urls == ("http://127.0.0.1:7780",)
    assert [event.reason for event in reporter.events] == ["x"]
    assert reporter.is_closed


def test_without_events_nobody_is_asked_for_control():
    """Nor with an environment that is of no use: it is what the workers complain of."""
    made = Made()
    Announcer("app:service", {}, make_reporter=made).close()
    announcer = Announcer("app:service", {"MESHRPC_CONTROL": "?"}, make_reporter=made)
    announcer.tell(died("x"))
    announcer.close()
    assert made == []


def test_every_line_is_logged_by_how_bad_it_is(caplog):
    """What is no event is only logged."""
    made = Made()
    announcer = Announcer("app:service", {}, make_reporter=made)
    announcer.introduce("echo", "default", [])
    with caplog.at_level("INFO", "meshrpc.workers"):
        announcer.tell(Tell("%s is bad"))
        announcer.tell(Tell("good", is_bad=False))
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "%s is bad"),
        ("INFO", "good"),
    ]
    assert made[0].events == []
