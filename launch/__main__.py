"""`python -m forgepress.launch …` is the command line; our own launcher starts its ranks by it."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
