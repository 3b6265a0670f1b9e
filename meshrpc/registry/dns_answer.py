"""What a DNS message says: the records of a name, how long they hold, or that there are none.

Follows the aliases (CNAME) in the message. A lifetime (TTL) is the least of all records that led
to the answer; that of "there is none" is the zone's (RFC 2308). An answer that says nothing
certain, such as SERVFAIL or a referral to other servers, is an `UnclearError`, never "none". Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rdtypes.IN.SRV
import dns.rrset

SHORTEST = 1.0
"""Seconds an answer is used at least: servers that say 0, as Consul does, would be asked without
a pause."""
LONGEST = 30.0
"""Seconds at most: gRPC asks as often, and a record with a day to live may be changed today."""
LONGEST_NONE = 5.0
"""Seconds until a name without records is asked again: nothing works until it has some."""

ADDRESSES = (dns.rdatatype.A, dns.rdatatype.AAAA)


class UnclearError(Exception):
    """The message does not answer the question; says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """What one SRV record says."""

    name: dns.name.Name
    port: int
    priority: int
    weight: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The records of a name; both empty when it has none of the type asked for."""

    addresses: tuple[str, ...]
    targets: tuple[Target, ...]
    additional: dict[dns.name.Name, tuple[str, ...]]
    """Addresses of targets, which the server has sent along."""
    ttl: float
    alias: dns.name.Name | None = None
    """The name to ask instead: this one is its alias, and the server has not followed it."""

    @property
    def is_empty(self) -> bool:
        """Whether there are no such records."""
        return not self.addresses and not self.targets


def read(message: dns.message.Message) -> Answer:
    """Return what a reply says.

    Raises:
        UnclearError: it is no answer.
    """
    code = message.rcode()
    if code not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        raise UnclearError(dns.rcode.to_text(code))
    try:
        if not isinstance(message, dns.message.QueryMessage):
            raise UnclearError("not the reply to a query")
        chain = message.resolve_chaining()
    except dns.exception.DNSException as error:
        raise UnclearError(f"a reply that cannot be used: {error}") from error
    if chain.answer is None:
        return _none(message, chain)
    targets = _targets(chain.answer)
    additional, lifetimes = _additional(message, {target.name for target in targets})
    return Answer(
        addresses=_addresses(chain.answer),
        targets=targets,
        additional=additional,
        ttl=_held(min(chain.minimum_ttl, *lifetimes, LONGEST), LONGEST),
    )


def _none(message: dns.message.QueryMessage, chain: dns.message.ChainingResult) -> Answer:
    authority = {rrset.rdtype for rrset in message.authority}
    is_final = message.rcode() == dns.rcode.NXDOMAIN or dns.rdatatype.SOA in authority
    if chain.cnames and not is_final:
        return Answer((), (), {}, _held(chain.minimum_ttl, LONGEST), alias=chain.canonical_name)
    if dns.rdatatype.NS in authority and not is_final and not message.flags & dns.flags.AA:
        raise UnclearError("a referral to other servers")
    return Answer((), (), {}, _held(chain.minimum_ttl, LONGEST_NONE))


def _additional(
    message: dns.message.Message, names: set[dns.name.Name]
) -> tuple[dict[dns.name.Name, tuple[str, ...]], list[float]]:
    found: dict[dns.name.Name, tuple[str, ...]] = {}
    lifetimes = []
    for rrset in message.additional:
        if rrset.name in names and rrset.rdtype in ADDRESSES:
            found[rrset.name] = found.get(rrset.name, ()) + _addresses(rrset)
            lifetimes.append(float(rrset.ttl))
    return found, lifetimes


def _addresses(rrset: dns.rrset.RRset) -> tuple[str, ...]:
    return tuple(rdata.address for rdata in rrset) if rrset.rdtype in ADDRESSES else ()


def _targets(rrset: dns.rrset.RRset) -> tuple[Target, ...]:
    return tuple(
        Target(rdata.target, rdata.port, rdata.priority, rdata.weight)
        for rdata in rrset
        if isinstance(rdata, dns.rdtypes.IN.SRV.SRV)
        and rdata.target != dns.name.root  # RFC 2782: "not available at this domain"
    )


def _held(ttl: float, longest: float) -> float:
    return max(SHORTEST, min(float(ttl), longest))
