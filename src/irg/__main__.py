"""``python -m irg``: the same as the ``irg`` command."""

import sys

from irg.cli.main import main

sys.exit(main())
