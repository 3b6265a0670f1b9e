"""The `meshrpc` command, as its script and as `python -m meshrpc`.

Here, and not in `meshrpc.cli`, because the first thing of all is what Ctrl-C does: all that a
command needs is half a second of imports.
"""

from __future__ import annotations

from meshrpc import interrupts


def main() -> None:
    """Run the command that the arguments say; never returns."""
    interrupts.end_process()
    from meshrpc.cli import main as command  # noqa: PLC0415 - it takes the half second

    try:
        command(prog_name="meshrpc")
    finally:
        interrupts.end_process()


if __name__ == "__main__":
    main()
