"""The demo: the shop's services as real processes, load through them, and the books checked.

`scenario.py` tells the story; start there.
"""
