"""Which backbone detects best? The same training of one detector on each of them, paired by seed. Or: which of some
trained detectors?"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from torch import nn

from upvit_mm.arch.size import Size
from upvit_mm.cli import default_device
from upvit_mm.compare.contestants import (
    Contestant,
    ap_kinds,
    check_contestant,
    check_detector_config,
    training_of,
    with_backbone,
)
from upvit_mm.compare.detector_options import DetectorOptions
from upvit_mm.compare.detector_report import write_detectors
from upvit_mm.compare.detector_speed import detector_speeds
from upvit_mm.compare.evaluation import PREDICTIONS, Evaluation, evaluate_all
from upvit_mm.compare.page import write_page
from upvit_mm.compare.paired import AP_STEP, paired_difference
from upvit_mm.data.datasets import datasets_in
from upvit_mm.files import write_text_atomically
from upvit_mm.models.network import macs_of
from upvit_mm.registry import type_name
from upvit_mm.runner import check_data, start_processes
from upvit_mm.stopwatch import device_name
from upvit_mm.version import __version__
from upvit_mm.workflow.ledger import Ledger, fingerprint
from upvit_mm.workflow.record import BOX_AP, Say
from upvit_mm.workflow.trainings import Training, train_all
from upvit_mm.workflow.whole_detector import default_size, macs_after_backbone, padded


class DetectorComparison:
    """Train and evaluate the detector on every backbone with every seed; finished work is not repeated.

    Everything is checked before the first training. In a distributed job (the config's ``launcher``) all processes run
    the same trainings; only the first one writes and returns the report.

    Args:
        cfg: mmdet config of the detector, on any backbone of ours. Its test data and evaluator judge all contestants.
        contestants: the backbones; whole detectors, where checkpoints are only evaluated.
        options: options of the comparison.
        work_dir: gets ``report.html``, ``detectors.md``, ``.csv``, ``.json``, ``curves.png`` and the runs in
            ``NAME/seedS``.
        say: called with each line of progress.

    Raises:
        FileNotFoundError: data are missing.
        ValueError: config, backbones, checkpoints or options do not fit; the message says which and why.
    """

    def __init__(
        self, cfg: Config, contestants: Sequence[Contestant], options: DetectorOptions, work_dir: Path, say: Say = print
    ):
        names = [contestant.name for contestant in contestants]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f'backbones: {twice[0]!r} names two of them; each needs its own name.')
        self.baseline = options.baseline or names[0]
        if self.baseline not in names:
            raise ValueError(f'baseline = {self.baseline!r}: must be one of the backbones {", ".join(names)}.')
        self.trained, whole = bool(options.seeds), [contestant.name for contestant in contestants if contestant.config]
        if self.trained and whole:
            raise ValueError(
                f'backbones: {whole[0]}: CONFIG.py,CHECKPOINT is a whole detector, which is only evaluated, not '
                'trained; add --evaluate, or give NAME=ARCH,CHECKPOINT.'
            )
        check_detector_config(cfg, self.trained, built=len(whole) < len(contestants))
        start_processes(copy.deepcopy(cfg))
        check_data(cfg, ('train', 'val', 'test') if self.trained else ('test',))
        cfg = copy.deepcopy(cfg)
        cfg.launcher = 'none'  # work dir and launcher are not part of the comparison
        cfg.pop('work_dir', None)
        self.cfg, self.contestants, self.options = cfg, list(contestants), options
        self.work_dir, self.say = Path(work_dir).absolute(), say if is_main_process() else lambda text: None
        self.seeded = {(c.name, seed): c.at(seed) for seed in options.seeds or (0,) for c in contestants}
        self.cfgs = {key: with_backbone(cfg, c, pretrained=self.trained) for key, c in self.seeded.items()}
        nets = {}
        for key, c in self.seeded.items():
            nets[c.name] = check_contestant(self.cfgs[key], c, whole=not self.trained)
        self.size = padded(options.size or default_size(cfg), nets[names[0]])
        self.costs = {name: _costs(net, self.size) for name, net in nets.items()}

    def run(self, **notes: Any) -> dict[str, Any] | None:
        """Run everything; returns the content of ``detectors.json``, with ``notes``. None in other processes."""
        trainings = {key: self._training(*key) for key in self.seeded} if self.trained else {}
        if self.trained:
            train_all(list(trainings.values()), self.options.jobs, self.say)
        evaluations = self._evaluations(trainings)
        evaluate_all(list(evaluations.values()), self.say)
        if not is_main_process():
            return None
        content = {
            **notes,
            'upvit_mm_version': __version__,
            'config_sha256': fingerprint(self.cfg.to_dict()),
            'machine': device_name(default_device()),
            'processes': get_world_size(),
            'trained': self.trained,
            'seeds': list(self.options.seeds),
            'epochs': next(iter(trainings.values())).epochs if self.trained else None,
            'baseline': self.baseline,
            'kinds': list(ap_kinds(self.cfg, 'test')),
            'data': {part: self._data(part) for part in (('train', 'test') if self.trained else ('test',))},
            'pictures': self._pictures(trainings, evaluations),
            'size': list(self.size),
            'speed': self._speed(evaluations) if self.options.repeats else None,
            'rows': with_statistics(self._rows(trainings, evaluations), self.baseline),
        }
        write_detectors(self.work_dir, content)
        kinds = dict.fromkeys(type_name(cfg.model.type) for cfg in self.cfgs.values())
        title = f'{", ".join(kinds)} on {", ".join(c.name for c in self.contestants)}'
        write_page(self.work_dir / 'report.html', title, detectors=[self.work_dir])
        return json.loads((self.work_dir / 'detectors.json').read_text(encoding='utf-8'))

    # ---------------------------------------------------------------------- parts

    def _training(self, name: str, seed: int) -> Training:
        cfg = training_of(self.cfgs[name, seed], seed, self.options.epochs, get_world_size())
        files = self.seeded[name, seed].files
        return Training(f'{name}, seed {seed}', self.work_dir / name / f'seed{seed}', cfg, files)

    def _evaluations(self, trainings: dict[tuple[str, int], Training]) -> dict[tuple[str, int | None], Evaluation]:
        if self.trained:
            return {key: Evaluation(t.name, t.folder, t.cfg, t.checkpoint) for key, t in trainings.items()}
        evaluations: dict[tuple[str, int | None], Evaluation] = {}
        for (name, seed), cfg in self.cfgs.items():
            folder = self.work_dir / name
            evaluations[name, None] = Evaluation(name, folder, cfg, Path(self.seeded[name, seed].checkpoint))
            if is_main_process():
                folder.mkdir(parents=True, exist_ok=True)
                cfg.dump(folder / 'config.py')
        return evaluations

    def _rows(self, trainings: dict, evaluations: dict) -> list[dict[str, Any]]:
        rows = []
        for c in self.contestants:
            own = {seed: evaluation for (name, seed), evaluation in evaluations.items() if name == c.name}
            runs = [self._run(c.name, seed, entry, trainings.get((c.name, seed))) for seed, entry in own.items()]
            rows.append({**c.to_dict(), **self.costs[c.name], 'runs': runs})
        return rows

    def _run(self, name: str, seed: int | None, evaluation: Evaluation, training: Training | None) -> dict[str, Any]:
        record = training.record() if training else {}
        return {
            'seed': seed,
            'backbone': self.seeded[name, seed or 0].to_dict()['checkpoint'],
            'metrics': evaluation.metrics(),
            'curve': record.get(BOX_AP.name),
            'seconds_per_step': record.get('seconds_per_step'),
            'predictions': (evaluation.folder / PREDICTIONS).relative_to(self.work_dir).as_posix(),
            'checkpoint': str(evaluation.checkpoint),
            'checkpoint_sha256': evaluation.record()['sha256'],
        }

    def _data(self, part: str) -> list[str]:
        """The annotation file, else the folder, of each data set of a part."""
        return [str(d.path(d.ann_file or d.images)) for d in datasets_in(self.cfg, part)]

    @staticmethod
    def _pictures(trainings: dict, evaluations: dict) -> dict[str, int | None]:
        """How many were trained on and tested on, which is the same for all; None = an older version did not say."""
        count = {'test': next(iter(evaluations.values())).record().get('pictures')}
        if trainings:
            count['train'] = next(iter(trainings.values())).record()['pictures']
        return count

    def _speed(self, evaluations: dict[tuple[str, int | None], Evaluation]) -> dict[str, Any]:
        """Measured only once for the same detectors: a second measurement would change a finished report."""
        first = {}
        for (name, _), run in evaluations.items():
            first.setdefault(name, run)
        ledger, path = Ledger(self.work_dir), self.work_dir / 'speed.json'
        machine = device_name(default_device())
        digests = {name: run.record()['sha256'] for name, run in first.items()}
        inputs = fingerprint('speed', digests, self.size, self.options.batch, self.options.repeats, machine)
        if not ledger.is_current('speed', inputs):
            self.say(f'timing {len(first)} detectors')
            files = {name: (run.folder / 'config.py', str(run.checkpoint)) for name, run in first.items()}
            speed = detector_speeds(files, self.size, self.options.batch, self.options.repeats)
            write_text_atomically(path, json.dumps(speed) + '\n')
            ledger.record('speed', inputs, path.name)
        return json.loads(path.read_text(encoding='utf-8'))


def _costs(detector: nn.Module, size: Size) -> dict[str, int | None]:
    backbone, rest = macs_of(detector.backbone, size), macs_after_backbone(detector, size)
    return {
        'macs': backbone,
        'detector_macs': None if rest is None else backbone + rest,
        'backbone_params': sum(p.numel() for p in detector.backbone.parameters()),
        'params': sum(p.numel() for p in detector.parameters()),
    }


def with_statistics(rows: list[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """The rows with ``mean``, ``std`` and ``over_baseline``, a ``paired_difference``, of every metric over their runs.

    Args:
        rows: each with ``name`` and ``runs``, whose seeds are the same in every row.
        baseline: name of the row that differences are to.
    """
    (reference,) = [row for row in rows if row['name'] == baseline]
    table = []
    for row in rows:
        pairs = list(zip(row['runs'], reference['runs']))
        assert all(run['seed'] == other['seed'] for run, other in pairs)
        step = 0 if row is reference else AP_STEP  # it differs from itself by nothing
        summary: dict[str, Any] = {'mean': {}, 'std': {}, 'over_baseline': {}}
        for name in row['runs'][0]['metrics']:
            values, others = ([run['metrics'][name] for run in side] for side in zip(*pairs))
            summary['mean'][name], summary['std'][name] = _mean_and_std(np.array(values, dtype=float))
            summary['over_baseline'][name] = paired_difference(values, others, step)
        table.append({**row, **summary})
    return table


def _mean_and_std(values: np.ndarray) -> tuple[float | None, float | None]:
    """None for unknown values: no object of a size in the data, the spread of one run."""
    if np.isnan(values).any():
        return None, None
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None
