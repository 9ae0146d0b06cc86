"""``python -m lovasz_repro.cli``: how a launcher starts the command line on other ranks."""

from lovasz_repro.cli import main

main()
