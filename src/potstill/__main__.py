"""`python -m potstill`: the command line, by the interpreter that runs."""

import sys

from potstill.cli import main

if __name__ == "__main__":
    sys.exit(main())
