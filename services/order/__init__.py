"""Orders: take an order, have it paid."""
