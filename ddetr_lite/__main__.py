"""`python -m ddetr_lite`: the command line, as torchrun starts it."""

import sys

from ddetr_lite.cli import main

if __name__ == "__main__":
    sys.exit(main())
