"""`python -m uml.supervisor.cli`: the installed program without its script."""

import sys

from uml.supervisor.cli import main

if __name__ == "__main__":
    sys.exit(main())
