"""One lookup: from what is asked for a service to the addresses of its instances.

SRV records come first (RFC 2782): of their targets only those of the lowest priority number
count, a weight of 0 is 1, and the addresses sent along save asking for them. Where there are none,
and a port is known, it is the name's own addresses. A name without any is an answer too; no
answer is a `RegistryError`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import dns.name
import dns.rdatatype

from meshrpc.errors import RegistryError
from meshrpc.registry.dns_answer import LONGEST, LONGEST_NONE, Answer, Target
from meshrpc.registry.dns_client import ANSWER_WITHIN, DnsClient, Server
from meshrpc.registry.dns_url import Question

T = TypeVar("T")

_A, _AAAA, _SRV = dns.rdatatype.A, dns.rdatatype.AAAA, dns.rdatatype.SRV


OTHER_KIND_WITHIN = 1.0
"""Seconds until addresses of one kind are enough: networks exist that swallow questions for IPv6."""


@dataclass(frozen=True, slots=True)
class Found:
    """What DNS has for a service."""

    weights: dict[str, int]
    """The weight of each address, as `host:port`."""
    ttl: float
    """Seconds until it should be asked again."""
    skipped: tuple[str, ...] = ()
    """Records that cannot be used, and why."""


class Lookup:
    """Looks one service up, again and again.

    It remembers the targets' addresses: one whose name cannot be resolved just now keeps them.
    """

    def __init__(self, question: Question, client: DnsClient) -> None:
        self._question = question
        self._client = client
        self._known: dict[dns.name.Name, tuple[str, ...]] = {}

    async def run(self) -> Found:
        """Ask; this takes `ANSWER_WITHIN` seconds at most.

        Raises:
            RegistryError: there is no answer.
        """
        question = self._question
        asked = _Asked(self._client)
        if question.srv is not None:
            answer = await asked.first(question.srv, _SRV)
            if answer.targets or question.host is None:
                return await self._of_targets(answer, asked)
        assert question.host is not None and question.port is not None  # noqa: S101, PT018
        port = question.port
        local = self._client.local_addresses(question.host)
        if local:
            return Found({_address(each, port): 1 for each in local}, LONGEST)
        answer = await asked.first(question.host, _A, _AAAA)
        return Found({_address(each, port): 1 for each in answer.addresses}, answer.ttl)

    async def _of_targets(self, answer: Answer, asked: _Asked) -> Found:
        lowest = min((target.priority for target in answer.targets), default=0)
        targets = [target for target in answer.targets if target.priority == lowest]
        weights: dict[str, int] = {}
        skipped = []
        ttl = answer.ttl
        results = await _all(self._addresses(target, answer, asked) for target in targets)
        known = {}
        for target, result in zip(targets, results, strict=True):
            if isinstance(result, RegistryError):
                skipped.append(f"SRV {target.name}:{target.port}: {result}")
                ttl = min(ttl, LONGEST_NONE)
                continue
            addresses, lifetime = result
            ttl = min(ttl, lifetime)
            known[target.name] = addresses
            for each in addresses:
                weights[_address(each, target.port)] = max(1, target.weight)
        self._known = known
        return Found(weights, ttl, tuple(sorted(skipped)))

    async def _addresses(
        self, target: Target, answer: Answer, asked: _Asked
    ) -> tuple[tuple[str, ...], float]:
        if not target.port:
            raise RegistryError("the port is 1 to 65535")
        if target.name in answer.additional:
            return answer.additional[target.name], answer.ttl
        name = target.name.to_text()
        local = self._client.local_addresses(name)
        if local:
            return local, LONGEST
        try:
            found = await asked.first(name, _A, _AAAA)
        except RegistryError:
            if target.name in self._known:
                return self._known[target.name], LONGEST_NONE
            raise
        if found.is_empty:
            raise RegistryError("the target has no address")
        return found.addresses, found.ttl


class _Asked:
    """The questions of one lookup: to the same servers, and with one limit of time."""

    def __init__(self, client: DnsClient) -> None:
        self._client = client
        self._to = client.configuration()
        self._until = client.clock.now() + ANSWER_WITHIN

    async def first(self, name: str, *kinds: dns.rdatatype.RdataType) -> Answer:
        """Return the records of the first of the names meant by `name` that has some.

        A name of which nothing is known ends the search: what a later one says may be a stranger.
        """
        ttl = LONGEST
        for candidate in self._to.candidates(name):
            answer = await self._one(self._to.servers, candidate, kinds)
            ttl = min(ttl, answer.ttl)
            if not answer.is_empty:
                return Answer(answer.addresses, answer.targets, answer.additional, ttl)
        return Answer((), (), {}, ttl)

    async def _one(
        self,
        servers: Sequence[Server],
        name: dns.name.Name,
        kinds: Sequence[dns.rdatatype.RdataType],
    ) -> Answer:
        results = await self._each(servers, name, kinds)
        answers = [result for result in results if isinstance(result, Answer)]
        errors = [result for result in results if isinstance(result, RegistryError)]
        some = [answer for answer in answers if not answer.is_empty]
        # Servers that only fail for AAAA are common, and addresses of one kind are enough.
        if errors and not some:
            raise errors[0]
        addresses = [each for answer in some for each in answer.addresses]
        targets = [each for answer in some for each in answer.targets]
        additional = {name: each for answer in some for name, each in answer.additional.items()}
        # The kind that is missing, in a network with one kind only, shall not hurry the other.
        ttl = min(answer.ttl for answer in some or answers)
        return Answer(tuple(addresses), tuple(targets), additional, ttl)

    async def _each(
        self,
        servers: Sequence[Server],
        name: dns.name.Name,
        kinds: Sequence[dns.rdatatype.RdataType],
    ) -> list[Answer | RegistryError]:
        """Ask for all kinds; once a second has passed, those that have come may be enough."""
        asking = [
            asyncio.ensure_future(self._client.ask(servers, name, kind, self._until))
            for kind in kinds
        ]
        try:
            with contextlib.suppress(TimeoutError):
                async with self._client.clock.timeout(OTHER_KIND_WITHIN):
                    return await _all(asyncio.shield(each) for each in asking)
            told = [each for each in asking if each.done() and each.exception() is None]
            if any(not each.result().is_empty for each in told):
                return [each.result() for each in told]
            return await _all(asking)
        finally:
            for each in asking:
                each.cancel()
            await asyncio.wait(asking)


async def _all(asking: Iterable[Awaitable[T]]) -> list[T | RegistryError]:
    """Ask all at the same time; return answers, and errors in the place of answers."""
    results = await asyncio.gather(*asking, return_exceptions=True)
    told: list[T | RegistryError] = []
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, RegistryError):
            raise result
        told.append(result)
    return told


def _address(text: str, port: int) -> str:
    literal = ipaddress.ip_address(text)
    return f"[{literal}]:{port}" if literal.version == 6 else f"{literal}:{port}"
