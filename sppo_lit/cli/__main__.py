"""``python -m sppo_lit.cli``: the same program as `sppo`."""

import sys

from sppo_lit.cli.main import main

sys.exit(main())
