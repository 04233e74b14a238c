"""``python -m secfl.cli`` is ``secfl``."""

import sys

from secfl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
