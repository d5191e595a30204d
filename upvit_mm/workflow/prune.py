"""The pruning job: from a dense classifier or a trained detector to the files of the pruned one."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints import read_checkpoint, save_checkpoint
from upvit_mm.data.image_set import ImageSet
from upvit_mm.data.picture_set import PictureSet
from upvit_mm.files import sha256_of, write_text_atomically
from upvit_mm.pruning import PrunePlan
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.costs import count_macs, count_params
from upvit_mm.pruning.crew import Crew
from upvit_mm.pruning.head_axes import AXES
from upvit_mm.pruning.importance import Scores
from upvit_mm.pruning.methods import METHODS
from upvit_mm.pruning.score_file import scores_digest
from upvit_mm.pruning.walk import Walk
from upvit_mm.workflow.dense_classifier import DenseClassifier
from upvit_mm.workflow.dense_detector import DenseDetector
from upvit_mm.workflow.job_blocks import JobBlocks
from upvit_mm.workflow.job_plan import JobPlan
from upvit_mm.workflow.job_scores import JobScores
from upvit_mm.workflow.latency_goal import bench_of
from upvit_mm.workflow.ledger import Ledger, fingerprint
from upvit_mm.workflow.part_times import time_parts
from upvit_mm.workflow.prune_checks import check_all_run, check_goal
from upvit_mm.workflow.prune_goal import Goal, goal_text, is_detector, sized
from upvit_mm.workflow.prune_report import write_report
from upvit_mm.workflow.prune_settings import PruneSettings
from upvit_mm.workflow.repairing import compensate_resumably
from upvit_mm.workflow.subject import Figures, Subject

logger = logging.getLogger('upvit_mm')


@dataclass(frozen=True)
class Outcome:
    """The result of pruning.

    Attributes:
        plan: kept channels and blocks.
        held_out: results on held-out images for ``dense``, ``sliced`` and, if asked for, ``compensated``: of a
            classifier ``kl`` to the dense posteriors and, if labels are known, ``top1`` in %; of a detector its
            evaluator's metrics. Empty if nothing was evaluated.
    """

    plan: PrunePlan
    held_out: Figures


class PruneJob:
    """Score, plan, slice, compensate and evaluate; a step is skipped when its inputs have not changed.

    Args:
        cfg: config of the dense network, of a classifier (mmpretrain) or a detector (mmdet), with its data.
        checkpoint: its weights, in any layout that ``upvit_mm.checkpoints`` knows.
        goal: an architecture, a budget, or a plan.
        work_dir: gets ``proxy.txt``, ``scores.pt``, ``plan.json``, ``arch.json``, ``report.json``, ``report.md``,
            ``widths.png``, and ``pruned.pth`` (of a detector ``detector.pth`` and ``detector.py``).
        settings: how.
        scores_file: scores to use instead of scoring.
        crew: the processes of the job; all score, the first does the rest.

    Raises:
        FileNotFoundError: a missing checkpoint; from the steps, a missing data folder.
        ValueError: a checkpoint, goal, file of scores or image set that does not fit; the message says which and why.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str,
        goal: Goal,
        work_dir: Path,
        settings: PruneSettings,
        scores_file: str | None = None,
        crew: Crew = Crew(),  # noqa: B008 (a frozen value)
    ):
        kind = DenseDetector if is_detector(cfg) else DenseClassifier
        init_default_scope(kind.scope)
        self.goal, self.settings, self.work_dir, self.crew = goal, settings, Path(work_dir), crew
        self.subject: Subject = kind(cfg, checkpoint, settings.device)
        goal = self.goal = sized(goal, self.subject.sizes[0], is_detector(cfg))
        settings = self.settings = replace(settings, attention=self._attention(settings))
        self.source = self.subject.arch
        self.ledger = Ledger(self.work_dir)
        self.images = self.subject.images(settings, self.ledger, crew)
        if isinstance(goal, Budget):
            check_all_run(self.source, self.subject.blocks_in_use(self.source))
        if isinstance(goal, Budget) and goal.metric == 'latency':
            bench = bench_of(goal, settings, self.subject.windows(settings))
            by_heads = settings.head_policy == 'select'
            goal = self.goal = replace(goal, table=crew.share(lambda: time_parts(self.source, bench, by_heads)))
        blocks = JobBlocks(self.subject, goal, self.images, crew, self._check_data)
        self.planning = JobPlan(self.subject, goal, settings, blocks.get)
        self.scoring = JobScores(self.subject, self.images, self.planning, crew, self._check_data, scores_file)
        scores_images = not (scores_file or isinstance(goal, PrunePlan)) and METHODS[settings.method].needs_images
        scored = scores_images or self.planning.chooses_blocks
        self._reads_proxy = scored or settings.compensate or settings.turns or settings.heal > 0
        self.subject.check(settings, scored)
        windows = self.subject.windows(settings)
        check_goal(goal, self.source, settings, self.subject.num_classes, self.subject.fixed, windows)
        if isinstance(goal, PrunePlan):
            self.goal = replace(goal, source_arch=self.source)  # the same network, with its name here

    def _attention(self, settings: PruneSettings) -> str:
        if settings.attention is not None:
            return settings.attention
        if isinstance(self.goal, PrunePlan):
            meta = self.goal.meta
            is_its_file = meta.get('sha256') == self.subject.sha256  # a turned.pth is not turned again
            return 'channels' if is_its_file else meta.get('settings', {}).get('attention') or 'channels'
        return self.subject.attention(settings)

    @property
    def dense(self) -> Walk:
        """The network that is pruned."""
        return self.subject.net

    @property
    def proxy(self) -> ImageSet | PictureSet:
        """Images for scoring and compensation."""
        return self.images.proxy

    def check_free(self) -> None:
        """Refuse to replace the result of another goal in the same folder.

        Raises:
            ValueError: the work dir has one.
        """
        file = self.work_dir / 'plan.json'
        if not file.is_file() or not (self.work_dir / self.subject.result).is_file():
            return
        try:
            there = PrunePlan.load(file)
        except ValueError:
            return  # a damaged plan is made again
        if isinstance(self.goal, Budget):
            same = there.meta.get('goal') == goal_text(self.goal)
        else:
            same = there.target_arch.to_dict() == self.planning.target(None).to_dict()
        if not same:
            raise ValueError(
                f'work_dir = {str(self.work_dir)!r}: has a network pruned for another goal '
                f'({there.meta.get("goal", "unknown")}); give another --work-dir, or --overwrite to replace it.'
            )

    # ------------------------------------------------------------------ the steps

    def run(self, **notes: Any) -> Outcome | None:
        """Run all steps; ``report.json`` also gets ``notes``. None in all processes except the first."""
        self._turn()
        given, scores = isinstance(self.goal, PrunePlan), None
        if not given:
            _ = self.planning.blocks  # chosen by all processes
            scores = self.scores()
        self.crew.leave()
        if self.crew.rank:
            return None
        self.images.crew = Crew()  # the first process continues alone
        plan = self._given_plan(self.goal) if given else self.plan(scores)
        self.slice(plan)
        return Outcome(plan, self.judge(plan, scores, **notes))

    def target(self) -> ArchSpec | None:
        """The architecture of the result; None in all processes except the first.

        Scores are made only if each block gets its own widths; all processes take part in that.
        """
        if self.planning.spends_by_score:
            self._turn()
        scores = self.scores() if self.planning.spends_by_score else None
        return None if self.crew.rank else self.planning.target(scores)

    def scores(self) -> Scores | None:
        """Scores by dim name, from the file given, from an earlier run or made now; None in other processes."""
        return self.scoring.get()

    def plan(self, scores: Scores) -> PrunePlan:
        """The plan. Blocks are chosen with images, so they are kept from an earlier run."""
        planning, identity = self.planning, self.subject.identity
        data = self.images.proxy_data if planning.chooses_blocks else None
        inputs = fingerprint('plan', identity, scores_digest(scores), str(self.goal), data, planning.inputs)
        known = self.ledger.is_current('plan', inputs)
        plan = PrunePlan.load(self.work_dir / 'plan.json') if known else planning.make(scores)
        meta = {'tool': 'prune', 'goal': goal_text(self.goal), 'method': self.scoring.method}
        meta['agreement'] = self.scoring.agreement
        plan.meta.update(meta, **self._provenance(plan.target_arch))
        if not known:
            plan.save(self.work_dir / 'plan.json')
            self._record('plan', inputs, 'plan.json')
        return plan

    def slice(self, plan: PrunePlan) -> None:
        """The pruned network's file and what is needed to build it; with compensation also ``sliced.pth``, the network
        without it."""
        s, subject = self.settings, self.subject
        plan_text = [plan.source_arch.to_dict(), plan.target_arch.to_dict(), plan.kept_blocks]
        plan_text += [sorted(plan.turned), {name: kept.tolist() for name, kept in plan.kept.items()}]
        inputs = [plan_text, subject.identity, s.some('compensate', 'ridge', 'heal')]
        inputs = fingerprint('slice', inputs, self.images.proxy_data if s.compensate or s.heal else None)
        known = self.ledger.is_current('slice', inputs)
        if not known:
            self._check_data()
        subject.write_config(self.work_dir, plan)  # each time: what the network is trained and tested with may change
        if known:
            return
        state, files = subject.slice(plan), [subject.result]
        if s.compensate or s.heal:
            self._save(plan, state, 'sliced.pth')
            files.append('sliced.pth')
        if s.compensate:
            net = subject.net_of(plan.target_arch, state)
            partial = self.work_dir / 'partial' / f'compensation-{inputs[:16]}.pt'
            compensate_resumably(self.dense, net, plan, self.proxy, s.ridge, partial, s.memory)
            state = subject.repair_rest(subject.with_weights(state, net), plan, self.proxy, s.ridge)
        if s.heal:
            if s.compensate:
                self._save(plan, state, 'compensated.pth')
                files.append('compensated.pth')
            partial = self.work_dir / 'partial' / f'healing-{inputs[:16]}.pt'
            state = subject.heal(state, self.proxy, s, plan.target_arch, partial)
        self._save(plan, state, subject.result)
        self._record('slice', inputs, *files)
        shutil.rmtree(self.work_dir / 'partial', ignore_errors=True)

    def judge(self, plan: PrunePlan, scores: Scores | None, **notes: Any) -> Figures:
        """Held-out results, and the report of everything, with ``notes``."""
        s, subject, report = self.settings, self.subject, self.work_dir / 'report.json'
        hashes = {name: sha256_of(self.work_dir / name) for name in (subject.result, 'plan.json')}
        data = None if s.eval_images == 0 else self.images.held_out_data
        digest = None if scores is None else scores_digest(scores)
        judge = None if s.eval_images == 0 else subject.judged_by
        inputs = fingerprint('judge', hashes, subject.identity, data, digest, judge)
        if self.ledger.is_current('judge', inputs):
            return json.loads(report.read_text(encoding='utf-8'))['held_out']
        figures, count = {}, 0
        if s.eval_images != 0:
            result = subject.result
            files = {'sliced': 'sliced.pth'} | ({'compensated': 'compensated.pth'} if s.compensate else {})
            files |= {'healed': result} if s.heal else {list(files)[-1]: result}
            figures = subject.judge(self.work_dir, files, plan.target_arch, self.images)
            count = self.images.held_out_count
        content = {**notes, 'held_out': figures, 'images': count, **plan.meta}
        write_text_atomically(report, json.dumps(content, indent=2) + '\n')
        results = subject.table(figures) if figures else None
        write_report(self.work_dir, plan, scores, content, results, subject.use(self.work_dir, plan))
        self._record('judge', inputs, 'report.json', 'report.md', 'widths.png')
        return figures

    def costs(self, target: ArchSpec) -> dict[str, dict[str, int]]:
        """Costs of the dense and the pruned network by name of the count; of a detector those of its backbone."""
        sizes = dict.fromkeys(self.subject.sizes)
        if isinstance(self.goal, Budget) and self.goal.has_size:
            sizes[self.goal.size_for(self.source)] = None
        costs, classes, windows = {}, self.subject.num_classes, self.subject.windows(self.settings)
        for name, arch in (('dense', self.source), ('pruned', target)):
            used = self.subject.blocks_in_use(arch)
            macs = {f'macs@{h}x{w}': count_macs(arch, (h, w), classes, windows, used) for h, w in sizes}
            costs[name] = macs | {'params': count_params(arch, classes)}
            if classes:
                costs[name]['params of the backbone'] = count_params(arch)
        return costs

    # --------------------------------------------------------------------- parts

    def _turn(self) -> None:
        """Go on with the same network in other axes, if the settings ask for it: ``turned.pth``."""
        s, subject, path = self.settings, self.subject, self.work_dir / 'turned.pth'
        if not s.turns or subject.is_turned:
            return
        inputs = fingerprint('turn', AXES, subject.identity, self.images.proxy_data, s.some('attention', 'embed'))

        if not self.crew.share(lambda: self.ledger.is_current('turn', inputs)):
            self._check_data()
            _ = self.proxy  # read by all processes

        def make() -> tuple[dict[str, Tensor], str]:
            if self.ledger.is_current('turn', inputs):
                return read_checkpoint(str(path))['state_dict'], sha256_of(path)
            state = subject.turn(s, self.proxy)
            meta = subject.meta | {'turned': s.some('attention', 'embed'), 'source_sha256': subject.sha256}
            save_checkpoint(path, state, arch=self.source.to_dict(), **meta)
            self._record('turn', inputs, 'turned.pth')
            return state, sha256_of(path)

        subject.take_turned(s, *self.crew.share(make))

    def _check_data(self) -> None:
        """Refuse missing data before hours of work, if there is work to do."""
        self.subject.check_data(self.settings, self._reads_proxy)

    def _record(self, step: str, inputs: str, *files: str) -> None:
        self.ledger.record(step, inputs, *files, data=self.images.seen)

    def _provenance(self, target: ArchSpec) -> dict:
        subject, windows = self.subject, self.subject.windows(self.settings)
        meta = {'settings': asdict(self.settings), 'checkpoint': str(subject.checkpoint), 'sha256': subject.sha256}
        if subject.source_sha256:
            meta['source_sha256'] = subject.source_sha256  # sha256 is that of turned.pth
        meta |= {'classes': subject.num_classes, 'windows': windows.size, 'fixed': dict(subject.fixed)}
        return meta | {'costs': self.costs(target)}

    def _given_plan(self, plan: PrunePlan) -> PrunePlan:
        belongs_to = plan.meta.get('sha256')
        turned = plan.turned or plan.meta.get('settings', {}).get('attention') == 'lowrank'
        if turned and belongs_to != self.subject.sha256:
            raise ValueError(
                f'the plan keeps directions of a turned network (sha256 {str(belongs_to)[:12]}...), and this one has '
                f'{self.subject.sha256[:12]}...: give the turned.pth of the job that made the plan.'
            )
        if belongs_to not in (None, self.subject.sha256):
            logger.warning('the plan was made for another checkpoint of this architecture (%s...)', belongs_to[:12])
        meta = {'goal': 'a given plan', 'method': 'unknown', **plan.meta, **self._provenance(plan.target_arch)}
        plan = replace(plan, meta=meta)
        plan.save(self.work_dir / 'plan.json')
        return plan

    def _save(self, plan: PrunePlan, state: dict[str, Tensor], name: str) -> None:
        save_checkpoint(self.work_dir / name, state, arch=plan.target_arch.to_dict(), **self.subject.meta, **plan.meta)


def prune(cfg: Config, checkpoint: str, goal: Goal, work_dir: Path, settings: PruneSettings, **more) -> Outcome:
    """Run a whole ``PruneJob``."""
    return PruneJob(cfg, checkpoint, goal, work_dir, settings, **more).run()
