"""Look for what is wrong with this installation and with a config: ``python -m upvit_mm.doctor`` in a checkout."""

import sys

from upvit_mm.cli import one_line_errors
from upvit_mm.doctor.__main__ import main

if __name__ == '__main__':
    with one_line_errors():
        sys.exit(main())
