"""Calls out of this process; `channel.py` is where to start reading."""
