"""``python -m runners``: the same as the command ``runners``."""

import sys

from runners.cli.main import main

sys.exit(main())
