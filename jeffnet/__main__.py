"""`python -m jeffnet` is `jeffnet`."""

import sys

from jeffnet.cli.main import main

sys.exit(main())
