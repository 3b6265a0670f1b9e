"""Payments: charge an order once."""
