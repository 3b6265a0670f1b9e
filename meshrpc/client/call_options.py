"""Call options: what a call can say beyond grpcio's words.

    with meshrpc.call_options(subset="v2", retry=False):
        receipt = await payment.Charge(request)

They hold for the calls made inside the block, by this task and by those it starts there. Blocks
nest: what the inner one does not say, the outer one does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass

from meshrpc.wire import Criticality


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What was said about the calls being made. None: nothing."""

    hash_key: str | None = None
    subset: str | None = None
    retry: bool = True
    criticality: Criticality | None = None


NOTHING_SAID = CallOptions()

CALL_OPTIONS: ContextVar[CallOptions] = ContextVar("meshrpc_call_options", default=NOTHING_SAID)
"""The options of calls made in this context."""


@contextmanager
def call_options(
    *,
    hash_key: str | None = None,
    subset: str | None = None,
    retry: bool | None = None,
    criticality: Criticality | str | None = None,
) -> Iterator[None]:
    """Say more about the calls made in this block.

    Args:
        hash_key: calls of one key go to one instance with the balancers `ring_hash` and `maglev`, and
            to one subset of a split.
        subset: only instances of this subset of the service's policy are asked.
        retry: False: there is one attempt and no other, whatever the policy says.
        criticality: `critical`, `default` or `sheddable`; calls made by the handler inherit it.

    Raises:
        TypeError: a value is of another type.
        ValueError: `criticality` is none of the three.
    """
    said = CALL_OPTIONS.get()
    for name, value in (("hash_key", hash_key), ("subset", subset), ("criticality", criticality)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name}={value!r}: text, not {type(value).__name__}")
    if retry is not None and not isinstance(retry, bool):
        raise TypeError(f"retry={retry!r}: True or False")
    token = CALL_OPTIONS.set(
        CallOptions(
            hash_key=said.hash_key if hash_key is None else hash_key,
            subset=said.subset if subset is None else subset,
            retry=said.retry if retry is None else retry,
            criticality=said.criticality if criticality is None else _criticality(criticality),
        )
    )
    try:
        yield
    finally:
        # The generator of a cancelled stream is closed from another context, which has no token.
        with suppress(ValueError):
            CALL_OPTIONS.reset(token)


def _criticality(given: str) -> Criticality:
    try:
        return Criticality(given)
    except ValueError:
        choices = ", ".join(Criticality)
        raise ValueError(f"criticality={given!r}: one of {choices}") from None
