"""`python -m polypod` is `polypod`."""

import sys

from polypod.cli import main

sys.exit(main())
