"""Generated from protos/services/payment/v1."""
