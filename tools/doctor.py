"""Find problems of this installation and of a config: the same as ``python -m upvit_mm.doctor``."""

import sys

from upvit_mm.cli import one_line_errors
from upvit_mm.doctor.__main__ import main

if __name__ == '__main__':
    with one_line_errors():
        sys.exit(main())
