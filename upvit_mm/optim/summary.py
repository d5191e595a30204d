"""An optimizer in one line of the log, in place of mmengine's line for every option of every parameter."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.optim import OptimWrapper, OptimWrapperDict

OPTION = 'paramwise_options -- '  # how mmengine's lines start


class _NoOptions(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(OPTION)


@contextmanager
def without_options(logger: logging.Logger) -> Iterator[None]:
    """Leave mmengine's lines about single parameters out of a log."""
    options = _NoOptions()
    logger.addFilter(options)
    try:
        yield
    finally:
        logger.removeFilter(options)


def summary(wrapper: OptimWrapper | OptimWrapperDict) -> str:
    """Each optimizer: how many parameters it has with which learning rate, and on how many its weight decay acts."""
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return '; '.join(_line(one) for one in wrappers)


def _line(wrapper: OptimWrapper) -> str:
    by_rate: dict[float, int] = {}
    decayed = total = 0
    for group in wrapper.optimizer.param_groups:
        count = sum(parameter.numel() for parameter in group['params'])
        rate = group.get('initial_lr', group['lr'])
        by_rate[rate] = by_rate.get(rate, 0) + count
        decayed += count if group.get('weight_decay') else 0
        total += count
    rates = ', '.join(f'{count:,} at lr {rate:g}' for rate, count in sorted(by_rate.items(), reverse=True))
    return f'{type(wrapper.optimizer).__name__}: {rates}; weight decay acts on {decayed:,} of {total:,} parameters'
