"""How much this process takes on: decisions without clocks or I/O of their own."""
