"""The gRPC face of the policy store.

Every document is validated before any is stored: a policy that reaches the store is one that
this release can load. What is refused is answered with every problem, one a line.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc

from meshrpc.control.control_service import DEFAULT_NAMESPACE
from meshrpc.control.database import StoreFullError
from meshrpc.control.refusals import details, listed, name_problem
from meshrpc.control.store import PolicyStore, StoredPolicy
from meshrpc.errors import ControlError, PolicyError
from meshrpc.policy import Document, load_document
from meshrpc.v1 import policy_pb2, policy_pb2_grpc

MAX_DOCUMENT: Final = 256 * 1024
"""Bytes of a document: each process that it is for reads it between two calls."""


class PolicyService(policy_pb2_grpc.PolicyStoreServicer):
    """Documents written to and read from the store."""

    def __init__(self, store: PolicyStore) -> None:
        self._store = store

    def __repr__(self) -> str:
        return f"<PolicyService {self._store!r}>"

    async def Apply(
        self, request: policy_pb2.ApplyRequest, context: Any
    ) -> policy_pb2.ApplyResponse:
        """Store all documents as one revision, or none of them."""
        namespace = request.namespace or DEFAULT_NAMESPACE
        if problem := name_problem("namespace", namespace):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
        # In a thread: a large set of documents takes longer than a renewal may wait.
        documents, problems = await asyncio.to_thread(_load, request.documents)
        if problems:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, listed(problems))
        texts = {service: document.canonical for service, document in documents.items()}
        warnings = [warning for document in documents.values() for warning in document.warnings]
        if request.dry_run:
            return policy_pb2.ApplyResponse(
                revision=self._store.revision,
                changed=self._store.difference(namespace, texts),
                warnings=warnings,
            )
        try:
            applied = await self._store.apply(namespace, texts, author=context.peer())
        except ControlError as error:
            await _abort(context, error)
        return policy_pb2.ApplyResponse(
            revision=applied.revision, changed=applied.changed, warnings=warnings
        )

    async def Delete(
        self, request: policy_pb2.DeletePolicyRequest, context: Any
    ) -> policy_pb2.DeletePolicyResponse:
        """Delete the service's document, as a revision of its own."""
        namespace = request.namespace or DEFAULT_NAMESPACE
        try:
            applied = await self._store.apply(
                namespace, {request.service: ""}, author=context.peer()
            )
        except ControlError as error:
            await _abort(context, error)
        if not applied.changed:
            await _not_found(context, namespace, request.service)
        return policy_pb2.DeletePolicyResponse(revision=applied.revision)

    async def Get(
        self, request: policy_pb2.GetPolicyRequest, context: Any
    ) -> policy_pb2.PolicyDocument:
        """Return the service's document."""
        namespace = request.namespace or DEFAULT_NAMESPACE
        stored = self._store.get(namespace, request.service)
        if stored is None:
            await _not_found(context, namespace, request.service)
            raise AssertionError  # abort raises
        return _to_wire(stored)

    async def List(
        self, request: policy_pb2.ListPoliciesRequest, _context: Any
    ) -> policy_pb2.ListPoliciesResponse:
        """Return the namespace's documents, ordered by service."""
        namespace = request.namespace or DEFAULT_NAMESPACE
        return policy_pb2.ListPoliciesResponse(
            policies=map(_to_wire, self._store.list(namespace)), revision=self._store.revision
        )


def _load(texts: Any) -> tuple[dict[str, Document], list[str]]:
    """Load each text strictly; return the documents by service, and every problem of all."""
    documents: dict[str, Document] = {}
    problems: list[str] = []
    for number, text in enumerate(texts, 1):
        source = "policy" if len(texts) == 1 else f"policy {number}"
        if (size := len(text.encode())) > MAX_DOCUMENT:
            problems.append(
                f"{source}: document: {size} bytes: a document has {MAX_DOCUMENT} at most"
            )
            continue
        try:
            document = load_document(text, source=source)
        except PolicyError as error:
            problems += str(error).splitlines()
            continue
        service = document.policy.service
        if service in documents:
            problems.append(f"{source}: service: {service}: another document is for it, too")
        documents[service] = document
    if not texts:
        problems.append("there is no document to apply")
    return documents, problems


def _to_wire(stored: StoredPolicy) -> policy_pb2.PolicyDocument:
    return policy_pb2.PolicyDocument(
        namespace=stored.namespace,
        service=stored.service,
        revision=stored.revision,
        document=stored.document,
    )


async def _abort(context: Any, error: ControlError) -> None:
    full = isinstance(error, StoreFullError)
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if full else grpc.StatusCode.INTERNAL
    await context.abort(code, details(str(error)))


async def _not_found(context: Any, namespace: str, service: str) -> None:
    await context.abort(
        grpc.StatusCode.NOT_FOUND,
        details(f"no policy for {service!r} in namespace {namespace!r}"),
    )
