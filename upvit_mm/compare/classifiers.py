"""Does a pruned network beat the vanilla network of its architecture? Both get the same training, for several seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope

from upvit_mm.arch import ArchSpec
from upvit_mm.arch.size import Size
from upvit_mm.checkpoints import load_classifier, local_file
from upvit_mm.cli import check_device
from upvit_mm.compare.classifier_options import VANILLA, WAYS, ClassifierOptions, Way
from upvit_mm.compare.classifier_report import write_classifiers
from upvit_mm.compare.paired import paired_difference
from upvit_mm.compare.step_times import step_times
from upvit_mm.data.identity import run_identity
from upvit_mm.files import sha256_of, write_text_atomically
from upvit_mm.pruning import PrunePlan
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.costs import count_macs, count_params
from upvit_mm.workflow.finetune import balanced_subset, check_dense_config, classifier, taught, training
from upvit_mm.workflow.ledger import Ledger, fingerprint
from upvit_mm.workflow.prune import prune
from upvit_mm.workflow.prune_checks import check_goal, check_readout, check_training_data
from upvit_mm.workflow.prune_goal import Goal, goal_text, source_of
from upvit_mm.workflow.prune_settings import PruneSettings
from upvit_mm.workflow.record import Say
from upvit_mm.workflow.trainings import Training, evaluate, train_all


class Comparison:
    """Prune, train all rows for all seeds, and write the results; finished work is not repeated.

    Args:
        cfg: mmpretrain config of the dense classifier.
        checkpoint: its weights; None = train it first, on the same images with the first seed.
        goal: the target or budget of the pruning.
        settings: settings of the pruning; with ``compensate``, which writes both slices.
        options: options of the comparison.
        work_dir: gets ``compare.md``, ``compare.csv``, ``compare.json``, ``curves.png`` and a folder for each step. A
            row's folder holds the ``arch.json`` that belongs to its checkpoints: rows share widths, not logit scales.
        say: called with each line of progress.

    Raises:
        FileNotFoundError: the checkpoint or data are missing.
        ValueError: config, checkpoint, goal or data do not fit; the message says which and why.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str | None,
        goal: Goal,
        settings: PruneSettings,
        options: ClassifierOptions,
        work_dir: Path,
        say: Say = print,
    ):
        init_default_scope('mmpretrain')
        check_dense_config(cfg)
        if not settings.compensate:
            raise ValueError('compensate = False: the rows need the plain and the compensated slice; leave it out.')
        check_training_data(cfg, checkpoint)
        if options.train_images:
            cfg = balanced_subset(cfg, options.train_images, settings.seed)
        self.cfg, self.goal, self.settings, self.options = cfg, goal, settings, options
        self.work_dir, self.say = Path(work_dir).absolute(), say
        self.given, self.source = checkpoint, source_of(cfg)
        check_readout(cfg, self.source.kind)
        check_device(settings.device)
        check_goal(goal, self.source, settings, cfg.model.head.num_classes)
        self.lr = options.lr or cfg.optim_wrapper.optimizer.lr
        self.finetune_lr = options.finetune_lr or self.lr
        self.dense_epochs = options.dense_epochs or (None if checkpoint else options.epochs)
        self.ways = self._ways()
        self.dense = self.work_dir / 'dense.pth'  # set to the file that is used

    def run(self, **notes: Any) -> dict[str, Any]:
        """Run everything; returns the content of ``compare.json``, including ``notes``."""
        dense = self._dense_row()
        pruning = self.work_dir / 'pruning'
        outcome = prune(self.cfg, str(self.dense), self.goal, pruning, self.settings)
        ways, seeds = self.ways, self.options.seeds
        for way in ways:
            self._arch(way, outcome.plan).save_json(self.work_dir / way.key / 'arch.json')
        runs = {(way.key, seed): self._training(way, seed, outcome.plan) for seed in seeds for way in ways}
        train_all(list(runs.values()), self.options.jobs, self.say)
        records = {way.key: {seed: runs[way.key, seed].record() for seed in seeds} for way in ways}
        used = {'dense_epochs': self.dense_epochs, 'lr': self.lr, 'finetune_lr': self.finetune_lr}
        used['rows'] = [way.key for way in ways]
        content = {
            **notes,
            'goal': goal_text(self.goal),
            'options': asdict(self.options) | used,
            'pruning': asdict(self.settings),
            'checkpoint': str(self.dense),
            'sha256': sha256_of(self.dense),
            'size': list(self._size),
            'dense': dense,
            'one_shot': outcome.held_out,
            'target': self._costs(outcome.plan.target_arch),
            'step_times': self._step_times(outcome.plan),
            'rows': rows_of(ways, records),
        }
        write_classifiers(self.work_dir, content)
        return json.loads((self.work_dir / 'compare.json').read_text(encoding='utf-8'))

    # ---------------------------------------------------------------------- parts

    def _ways(self) -> list[Way]:
        if self.options.rows is None:
            return [way for way in WAYS if self.dense_epochs or not way.both_trainings]
        ways = [way for way in WAYS if way.key in self.options.rows]
        if not self.dense_epochs and (longer := [way.key for way in ways if way.both_trainings]):
            raise ValueError(f'rows: {longer[0]} needs dense_epochs: the epochs of the given checkpoint.')
        return ways

    def _dense_row(self) -> dict[str, Any]:
        o = self.options
        if self.given is None:
            cfg = training(self.cfg, self.cfg.model, self.dense_epochs, o.seeds[0], self.lr)
            dense = Training('dense', self.work_dir / 'dense', cfg)
            train_all([dense], say=self.say)
            self.dense = dense.checkpoint
        else:
            self.dense = local_file(self.given).absolute()
        state = load_classifier(self.dense, arch=self.source)
        read = run_identity(self.cfg, ('val',))
        validation = self.cfg.model, self.cfg.val_dataloader, read
        inputs = fingerprint('dense', sha256_of(self.dense), *validation, self._size)
        ledger, path = Ledger(self.work_dir), self.work_dir / 'dense.json'
        if not ledger.is_current('dense', inputs):
            top1 = evaluate(self.cfg, state, self.work_dir / 'dense-evaluation')
            write_text_atomically(path, json.dumps({'top1': top1, **self._costs(self.source)}) + '\n')
            ledger.record('dense', inputs, path.name)
        return json.loads(path.read_text(encoding='utf-8'))

    def _arch(self, way: Way, plan: PrunePlan) -> ArchSpec:
        """The architecture of a row: from scratch with the usual scale of logits, pruned with that of its source."""
        if way.start is not None:
            return plan.target_arch
        return ArchSpec.from_dict({k: v for k, v in plan.target_arch.to_dict().items() if k != 'qk_scales'})

    def _model(self, way: Way, plan: PrunePlan):
        """The model of a row, and the files that decide its result."""
        pruning = self.work_dir / 'pruning'
        files = [] if way.start is None else [pruning / way.start]
        plans = [] if way.start is None else [pruning / 'plan.json']
        model = classifier(self.cfg, self._arch(way, plan), *files)
        if way.distilled:
            model = taught(model, self.cfg, self.dense, self.options.lesson, plans)
            files += [self.dense]
        return model, tuple(files)

    def _training(self, way: Way, seed: int, plan: PrunePlan) -> Training:
        model, files = self._model(way, plan)
        epochs = self.options.epochs + (self.dense_epochs if way.both_trainings else 0)
        cfg = training(self.cfg, model, epochs, seed, self.finetune_lr if way.start else self.lr)
        return Training(f'{way.title}, seed {seed}', self.work_dir / way.key / f'seed{seed}', cfg, files)

    @property
    def _size(self) -> Size:
        """``(height, width)`` in pixels at which costs are counted: the budget's, else the architecture's."""
        budget = self.goal if isinstance(self.goal, Budget) else None
        return budget.size_for(self.source) if budget and budget.has_size else (self.source.img_size,) * 2

    def _costs(self, arch: ArchSpec) -> dict[str, int]:
        classes = self.cfg.model.head.num_classes
        return {'macs': count_macs(arch, self._size, classes), 'params': count_params(arch, classes)}

    def _step_times(self, plan: PrunePlan) -> dict[str, float]:
        """Measured only once for the same networks: a second measurement would change a finished report."""
        ledger, path = Ledger(self.work_dir), self.work_dir / 'step_times.json'
        models = [self._model(way, plan)[0] for way in WAYS[:2]]
        inputs = fingerprint('step_times', [model.to_dict() for model in models], self.cfg.train_dataloader.batch_size)
        if not ledger.is_current('step_times', inputs):
            write_text_atomically(path, json.dumps(step_times(self.cfg, *models)) + '\n')
            ledger.record('step_times', inputs, path.name)
        return json.loads(path.read_text(encoding='utf-8'))


def rows_of(ways: Sequence[Way], records: dict[str, dict[int, dict]]) -> list[dict[str, Any]]:
    """Mean and spread of each row, its difference to vanilla, paired by seed, and when it reaches vanilla's final mean.

    Args:
        ways: the ways that were trained.
        records: results of ``Training.record`` by key and seed; every way has the same seeds.

    Returns:
        By row, among others, ``mean``, ``std``, and ``mean``, ``interval`` and ``established`` of the
        ``paired_difference`` to vanilla, the first of them as ``over_vanilla``; without vanilla they are None.
    """
    table, vanilla = [], None
    for way in ways:
        curves = np.array([record['top1'] for record in records[way.key].values()], dtype=float)
        timed = [record['seconds_per_step'] for record in records[way.key].values()]
        known = [seconds for seconds in timed if seconds]  # lost if a run was interrupted before its evaluation
        final, curve = curves[:, -1], np.nanmean(curves, axis=0)  # an epoch without its accuracy is NaN
        if way == VANILLA:
            vanilla = final
        reached = [] if vanilla is None else np.flatnonzero(curve >= vanilla.mean())
        over = {} if vanilla is None else paired_difference(final, vanilla)
        table.append(
            {
                **asdict(way),
                'top1': dict(zip(map(str, records[way.key]), final.tolist())),
                'epochs': curves.shape[1],
                'mean': float(final.mean()),
                'std': float(final.std(ddof=1)) if len(final) > 1 else None,
                'over_vanilla': over.get('mean'),
                'interval': over.get('interval'),
                'established': over.get('established'),
                'epochs_to_vanilla': int(reached[0]) + 1 if len(reached) else None,
                'seconds_per_step': median(known) if known else None,
                'curve': curve.tolist(),
                'curves': curves.tolist(),
            }
        )
    return table
