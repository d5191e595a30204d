"""A detector's metrics on the test data of its config, evaluated once."""

from __future__ import annotations

import copy
import gc
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from mmengine.runner import Runner

from upvit_mm.data.datasets import datasets_in
from upvit_mm.data.identity import run_identity
from upvit_mm.files import sha256_of, write_text_atomically
from upvit_mm.registry import is_type
from upvit_mm.runner import build_runner
from upvit_mm.workflow.ledger import Ledger, fingerprint
from upvit_mm.workflow.record import innermost
from upvit_mm.workflow.trainings import console_of, placed

logger = logging.getLogger('upvit_mm')
FILE = 'metrics.json'


@dataclass(frozen=True)
class DetectorTest:
    """A checkpoint to evaluate with the config's own evaluator.

    Attributes:
        folder: gets ``metrics.json`` and mmengine's logs.
        cfg: whole config of the detector.
        checkpoint: its file.
        count: only the first pictures of the test set; None = all.
    """

    folder: Path
    cfg: Config
    checkpoint: Path
    count: int | None = None

    def metrics(self) -> dict[str, float]:
        """All metrics by the evaluator's names; from an earlier run if nothing has changed."""
        ledger, inputs = Ledger(self.folder), self._inputs()
        if not ledger.is_current('test', inputs):
            logger.info('evaluating %s', self.checkpoint)
            text = json.dumps(self._run(), indent=2, default=float)
            write_text_atomically(self.folder / FILE, text + '\n')
            ledger.record('test', inputs, FILE)
        return json.loads((self.folder / FILE).read_text(encoding='utf-8'))

    def _inputs(self) -> str:
        read = run_identity(self.cfg, ('test',))
        return fingerprint('test', self.cfg.to_dict(), sha256_of(self.checkpoint), read, self.count)

    def _run(self) -> dict[str, Any]:
        if not self.count:
            return run_test(self.cfg, self.checkpoint, self.folder)
        cfg = copy.deepcopy(self.cfg)
        check_countable(cfg)
        datasets_in(cfg, 'test')[0].settings.indices = self.count
        return run_test(cfg, self.checkpoint, self.folder, _judge_only_these)


def run_test(
    cfg: Config, checkpoint: Path, folder: Path, prepare: Callable[[Runner], object] = lambda runner: None
) -> dict[str, Any]:
    """All metrics of a checkpoint by the evaluator of its config, in all processes of the job together.

    Args:
        cfg: whole config of the detector.
        checkpoint: its file.
        folder: gets mmengine's logs and ``console.log``.
        prepare: called with the runner before the test.
    """
    cfg = placed(Config(cfg.to_dict()), folder / 'test')
    cfg.update(load_from=str(checkpoint), resume=False)
    for evaluator in _evaluators(cfg):
        if prefix := evaluator.get('outfile_prefix'):  # the user's own file is of the user's own test
            evaluator['outfile_prefix'] = str(folder / 'test' / Path(prefix).name)
    with console_of(folder):
        runner = build_runner(cfg, parts=('test',))
        prepare(runner)
        metrics = dict(runner.test())
    del runner
    gc.collect()  # a runner has reference cycles, which keep its loaders' processes alive
    return metrics


def tested_data(runner: Runner) -> Any:
    """The data set of a runner's test, without wrappers."""
    return innermost(runner.test_loop.dataloader.dataset)


def _evaluators(cfg: Config) -> list[Mapping]:
    found = cfg.get('test_evaluator') or []
    return [found] if isinstance(found, Mapping) else list(found)


def check_testable(cfg: Config) -> None:
    """Refuse a config whose test cannot judge.

    Raises:
        ValueError: a part of the test is missing, or its evaluator only writes files.
    """
    for name in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        if cfg.get(name) is None:
            raise ValueError(
                f'the config has no {name}, and the pruned detector is judged by its test: add test_dataloader, '
                'test_evaluator and test_cfg, for example those of val; or give --eval-images 0 to judge nothing.'
            )
    if any(evaluator.get('format_only') for evaluator in _evaluators(cfg)):
        raise ValueError(
            'test_evaluator.format_only = True: it writes files and gives no metrics; set it to False, with annotated '
            'pictures; or give --eval-images 0 to judge nothing.'
        )


def check_countable(cfg: Config) -> None:
    """Refuse a test on some pictures where it would not give what a test on a smaller set gives.

    Raises:
        ValueError: several data sets, or a metric other than CocoMetric.
    """
    sets, evaluators = datasets_in(cfg, 'test'), _evaluators(cfg)
    known = dict(registry=METRICS, scope='mmdet')
    other = [e.get('type') for e in evaluators if not is_type(e.get('type'), 'CocoMetric', **known)]
    if len(sets) != 1 or other:
        found = f'test_evaluator has a {other[0]}' if other else f'test_dataloader has {len(sets)} data sets'
        raise ValueError(
            f'eval_images: {found}; the first pictures can be taken of one data set with a CocoMetric. Leave it out to '
            'evaluate on the whole test set, or give 0.'
        )


def _judge_only_these(runner: Runner) -> None:
    """CocoMetric counts the objects of all pictures of its annotation file; here of those in the data set."""
    dataset = tested_data(runner)
    numbers = [dataset.get_data_info(k)['img_id'] for k in range(len(dataset))]
    metrics: list[BaseMetric] = runner.test_evaluator.metrics
    for metric in metrics:
        assert hasattr(metric, 'img_ids'), f'{type(metric).__name__} has no img_ids'
        metric.img_ids = numbers
