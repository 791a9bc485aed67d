"""`python -m polypod` is `polypod`."""

import sys

from polypod.cli.main import main

sys.exit(main())
