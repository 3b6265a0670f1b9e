"""The control service: policies, the embedded registry, and the pushes that carry both."""
