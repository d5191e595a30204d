"""A log with one line for each fact."""

from __future__ import annotations

import contextlib
import io
import logging
from typing import Any

REPEATED = (  # starts of messages
    'Exp name: ',  # after every epoch; the file of the log has the same name
    'bbox_mAP_copypaste: ',  # the next line has the same numbers with their names
    'segm_mAP_copypaste: ',
    'Using env variable `UPVIT_MM_SCALE`',  # once for each use in a config
    '"FileClient" will be deprecated',  # mmengine's own use of its older parts
    '"HardDiskBackend" is the alias',
)


class _OncePerFact(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(REPEATED)


def leave_out_repeated(logger: logging.Logger) -> None:
    """Leave out of a log what OpenMMLab says again, and its warnings about itself."""
    if not any(isinstance(entry, _OncePerFact) for entry in logger.filters):
        logger.addFilter(_OncePerFact())


def leave_out_prints(evaluator: Any) -> None:
    """Leave out what metrics print in ``evaluator.evaluate``: pycocotools prints 19 lines each time.

    What metrics log stays.
    """
    evaluate = evaluator.evaluate

    def quietly(*args: Any, **kwargs: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return evaluate(*args, **kwargs)

    evaluator.evaluate = quietly
