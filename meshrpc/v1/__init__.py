"""Generated from protos/meshrpc/v1."""
