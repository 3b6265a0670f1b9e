"""`python -m meshrpc`: the `meshrpc` command, where its script is not on the path."""

from meshrpc.cli import main

main(prog_name="meshrpc")
