"""python -m gft_edge."""

from gft_edge.cli import main

main(prog_name="gft-edge")
