"""The policy language: documents in, frozen policies out."""

from __future__ import annotations

from meshrpc.policy.documents import Document, load_document, load_documents

__all__ = ["Document", "load_document", "load_documents"]
