"""`python -m hidistill` is the command line."""

import sys

from hidistill.cli import main

sys.exit(main())
