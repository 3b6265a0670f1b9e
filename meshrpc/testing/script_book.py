"""What a scripted service answers: answers by method, checked when they are given.

The methods come from a protobuf service descriptor, so a script that no generated code could
have answered is refused at once. `scripted.py` has these answers sent.
"""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from meshrpc.wire import Metadata


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer that is a status."""

    code: grpc.StatusCode
    details: str = ""
    trailing_metadata: Metadata = ()

    def __post_init__(self) -> None:
        if not isinstance(self.code, grpc.StatusCode) or self.code is grpc.StatusCode.OK:
            raise ValueError(f"a failure has a grpc.StatusCode other than OK, not {self.code!r}")


Answer: TypeAlias = "Message | Failure | Sequence[Message | Failure] | Callable[..., Any]"


@dataclass(frozen=True, slots=True)
class Method:
    """A method as its proto has it."""

    name: str
    path: str
    """As `/pkg.Service/Method`."""
    request: type[Message]
    response: type[Message]
    takes_stream: bool
    answers_stream: bool

    def check(self, answer: Any) -> None:
        """Raise TypeError unless this method could answer so."""
        if isinstance(answer, Failure) or (callable(answer) and not isinstance(answer, type)):
            return
        if not self.answers_stream:
            if not isinstance(answer, self.response):
                raise TypeError(f"{self.name} answers {self._wanted()}, not {shown(answer)}")
            return
        if isinstance(answer, (Message, str, bytes)) or not isinstance(answer, Sequence):
            raise TypeError(f"{self.name} answers a list of {self._wanted()}, not {shown(answer)}")
        for message in answer:
            if not isinstance(message, (self.response, Failure)):
                raise TypeError(f"{self.name} streams {self._wanted()}, not {shown(message)}")

    def _wanted(self) -> str:
        return str(self.response.DESCRIPTOR.full_name)


def methods_of(descriptor: ServiceDescriptor) -> Mapping[str, Method]:
    """Return the methods of a service by their names.

    Raises:
        TypeError: this is no service descriptor.
    """
    if not isinstance(descriptor, ServiceDescriptor):
        raise TypeError(
            "a scripted service needs a protobuf service descriptor, as in payment_pb2.DESCRIPTOR"
            f'.services_by_name["PaymentService"], not {shown(descriptor)}'
        )
    return {
        method.name: Method(
            method.name,
            f"/{descriptor.full_name}/{method.name}",
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
            method.client_streaming,
            method.server_streaming,
        )
        for method in descriptor.methods
    }


class ScriptBook:
    """Answers by method: each is given once, in turn, and the last one for ever."""

    def __init__(self, service: str, methods: Mapping[str, Method]) -> None:
        self._service = service
        self._methods = methods
        self._answers: dict[str, deque[Answer]] = {}

    def __repr__(self) -> str:
        return f"<ScriptBook {self._service} {', '.join(sorted(self._answers)) or 'empty'}>"

    def write(self, name: str, answers: Sequence[Answer]) -> None:
        """Replace the answers of a method.

        Raises:
            ValueError: there is no such method, or no answer.
            TypeError: the method cannot answer so.
        """
        method = self.method(name)
        if not answers:
            raise ValueError(f"{name} needs an answer")
        for answer in answers:
            method.check(answer)
        self._answers[name] = deque(answers)

    def next(self, name: str) -> Answer | None:
        """Return the answer whose turn it is; None when there is none."""
        answers = self._answers.get(name)
        if not answers:
            return None
        return answers.popleft() if len(answers) > 1 else answers[0]

    def method(self, name: str) -> Method:
        """Return a method by its name; ValueError, with those there are, for any other."""
        method = self._methods.get(name)
        if method is None:
            near = difflib.get_close_matches(name, self._methods, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"{self._service} has no method {name!r}; {hint}it has {', '.join(self._methods)}"
            )
        return method


def shown(value: object) -> str:
    """Return what kind of thing a wrong answer is, and its text, for an error."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None:
        return "None"
    return f"{type(value).__name__} {value!r:.80}".rstrip()  # an empty message has no text
