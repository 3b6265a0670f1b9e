"""meshrpc: a service mesh inside your Python gRPC process."""

__version__ = "0.1.0"
