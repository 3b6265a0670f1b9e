"""Registries: who serves what, and the leases of those who do."""
