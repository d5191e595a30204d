"""Evaluation of a detector's checkpoint on its test data; the folder of its run keeps metrics and predictions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import barrier, broadcast_object_list, is_main_process
from mmengine.runner import Runner

from upvit_mm.compare.contestants import ap_kinds
from upvit_mm.compare.predictions import PredictionsFile
from upvit_mm.data.identity import looked_at_once, run_identity
from upvit_mm.files import sha256_of, write_text_atomically
from upvit_mm.workflow.detector_test import run_test, tested_data
from upvit_mm.workflow.ledger import Ledger, fingerprint
from upvit_mm.workflow.record import Say

METRICS, PREDICTIONS = 'metrics.json', 'predictions.json'
AREAS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint to evaluate.

    Attributes:
        name: its name in messages.
        folder: gets ``metrics.json``, ``predictions.json`` (a COCO result file) and mmengine's logs.
        cfg: whole config of the detector.
        checkpoint: file of the whole detector.
    """

    name: str
    folder: Path
    cfg: Config
    checkpoint: Path

    def record(self) -> dict[str, Any]:
        """The content of ``metrics.json``: all metrics, ``pictures``, the checkpoint and its ``sha256``."""
        return json.loads((self.folder / METRICS).read_text(encoding='utf-8'))

    def metrics(self) -> dict[str, float | None]:
        """AP by name, for example ``bbox_mAP_50``, in 0 to 1; None if the test data have no object of that size."""
        metrics = self.record()['metrics']
        names = [f'{kind}_{area}' for kind in ap_kinds(self.cfg, 'test') for area in AREAS]
        values = {name: metrics.get(f'coco/{name}', 0.0) for name in names}  # mmdet: nothing was detected
        return {name: None if value < 0 else value for name, value in values.items()}

    def is_done(self) -> bool:
        """Whether the same checkpoint was evaluated with the same config, and its files have not changed."""
        return self.checkpoint.is_file() and Ledger(self.folder).is_current('evaluation', self._inputs())

    def run(self) -> None:
        """Evaluate it, in all processes of the job together."""

        pictures = 0

        def keep_predictions(runner: Runner) -> None:
            nonlocal pictures
            data = tested_data(runner)
            pictures = len(data)
            runner.test_evaluator.metrics.append(PredictionsFile(self.folder / PREDICTIONS, data.cat_ids))

        metrics = run_test(self.cfg, self.checkpoint, self.folder, keep_predictions)
        if is_main_process():
            content = {'metrics': metrics, 'pictures': pictures, 'checkpoint': str(self.checkpoint)}
            content['sha256'] = sha256_of(self.checkpoint)
            write_text_atomically(self.folder / METRICS, json.dumps(content, indent=2, default=float) + '\n')
            Ledger(self.folder).record('evaluation', self._inputs(), METRICS, PREDICTIONS)

    def _inputs(self) -> str:
        read = run_identity(self.cfg, ('test',))
        return fingerprint('evaluation', PREDICTIONS, self.cfg.to_dict(), sha256_of(self.checkpoint), read)


def evaluate_all(evaluations: list[Evaluation], say: Say) -> None:
    """Run the evaluations that are not finished yet, one after another."""
    with looked_at_once():
        done = [is_main_process() and evaluation.is_done() for evaluation in evaluations]
    broadcast_object_list(done)
    for evaluation, finished in zip(evaluations, done):
        if not finished:
            say(f'evaluating {evaluation.name}')
            evaluation.run()
    barrier()
