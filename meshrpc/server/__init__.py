"""Serving: a process that registers, answers calls, and leaves without losing one."""
