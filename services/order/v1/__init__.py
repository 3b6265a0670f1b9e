"""Generated from protos/services/order/v1."""
