"""`python -m blip_fast` is `blip-fast`."""

from blip_fast.cli import program

program()
