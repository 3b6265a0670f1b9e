"""The text of a registry file: services, and the instances of each.

    schema: meshrpc.registry/v1
    namespace: staging          # who sees it; without this, every namespace
    services:
      payment:
      - 10.0.0.5:50051
      - {address: "10.0.0.6:50051", id: payment-2, version: v2, zone: a, weight: 3}

YAML or JSON, one document or several. Read as strictly as a policy: nothing is used of a text
with a problem, and all problems are told at once. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

from meshrpc.errors import Problem
from meshrpc.policy import names
from meshrpc.policy.loading import child_path, read_trees
from meshrpc.policy.schema import Place, RefusedError, Report, list_of, plain, text
from meshrpc.registry.instance import Instance
from meshrpc.registry.record import instance_reader

SCHEMA = "meshrpc.registry/v1"

Services = Mapping[str, tuple[Instance, ...]]
"""The instances of each service, ordered by id."""


def read_services(content: str, namespace: str) -> tuple[Services, tuple[Problem, ...]]:
    """Return what a namespace sees of a file, and every problem of it; with problems, nothing."""
    trees, problems = read_trees(content)
    found: dict[str, tuple[Instance, ...]] = {}
    listed: list[tuple[str, str | None, str]] = []
    for path, tree in trees:
        place = Place(tree, path, Report(problems=problems))
        try:
            scope, document = place.read(partial(_document, namespace=namespace))
        except RefusedError:
            continue
        for service, instances in document.items():
            for other, other_scope, at in listed:
                # A document for every namespace meets those of each.
                if other == service and (scope == other_scope or None in (scope, other_scope)):
                    place["services"][service].miss(f"this service stands in {at} already")
            listed.append((service, scope, path))
            if scope in (None, namespace):
                found[service] = instances
    return ({} if problems else found), tuple(problems)


def concerns(problem: Problem, service: str) -> bool:
    """Return whether a problem stands under a service."""
    path = re.sub(r"^documents\[\d+\]\.", "", problem.path)
    return re.match(rf"{re.escape(child_path('services', service))}(?![\w/*-])", path) is not None


def _document(place: Place, namespace: str) -> tuple[str | None, Services]:
    fields = plain(
        {
            "schema": text(re.escape(SCHEMA), f"expected {SCHEMA}"),
            "namespace": names.service,
            "services": partial(_services, namespace=namespace),
        },
        required=("schema", "services"),
    )(place)
    return fields.get("namespace"), fields["services"]


def _services(place: Place, namespace: str) -> Services:
    if not isinstance(place.tree, dict):
        raise place.refuse("expected a mapping of services to lists of instances")
    services: dict[str, tuple[Instance, ...]] = {}
    for name in place.tree:
        try:
            names.service(Place(name, place[name].path, place.report))
            services[name] = place[name].read(
                partial(_instances, service=name, namespace=namespace)
            )
        except RefusedError:
            continue
    if len(services) < len(place.tree):
        raise RefusedError
    return services


def _instances(place: Place, service: str, namespace: str) -> tuple[Instance, ...]:
    instances = list_of(instance_reader(service, namespace))(place)
    known: dict[str, Instance] = {}
    for index, instance in enumerate(instances):
        if instance.id in known:
            place[index].miss(f"an instance with the id {instance.id} stands above")
        known[instance.id] = instance
    if len(known) < len(instances):
        raise RefusedError
    return tuple(known[each] for each in sorted(known))
