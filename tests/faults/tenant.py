"""One instance that lives as services do: `python -m tests.faults.tenant SERVICE LOG`.

It is a `Service` that `run`s: it makes up its own id, and SIGTERM has it leave. It says `loaded` on
stdout, starts when it is told `start`, and says its id and address once it has registered. Each
execution of a handler is a line in its log, as a victim's, and so is what it asks the registry for:
`<monotonic seconds> asked <word> <incarnation>`. When stdin ends it stops at once.
"""

import argparse
import os
import sys
import threading

import grpc

import meshrpc
from tests.faults.asked import note_asked
from tests.faults.methods import GET, PUT, SERVICE
from tests.faults.victim import Behaviour, handler, shorten
from tests.faults.words import say

ASKED = "asked"


def _end_with_stdin():
    sys.stdin.read()
    os._exit(0)  # the tests are over, or have died


def main(given):
    log = os.open(given.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(at, word, instance):
        if instance.service == given.service:
            os.write(log, f"{at:.6f} {ASKED} {word} {instance.incarnation}\n".encode())

    note_asked(note)
    if given.lease:
        shorten(given.lease)
    service = meshrpc.Service(given.service, listen=given.listen, grace=5.0)
    behaviour = Behaviour(log, following=None)
    methods = {path.rpartition("/")[2]: handler(behaviour, path) for path in (GET, PUT)}
    service.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    say("loaded")
    if not sys.stdin.readline():
        return
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    service.run(on_ready=lambda instance: say(f"{instance.id} {instance.address}"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("service")
    parser.add_argument("log")
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--lease", type=float)
    main(parser.parse_args())
