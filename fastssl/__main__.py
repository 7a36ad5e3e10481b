"""``python -m fastssl``: the command line."""

import sys

from fastssl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
