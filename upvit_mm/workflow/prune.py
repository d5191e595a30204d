"""The pruning job: from a dense classifier to the files of a pruned network."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints import load_classifier, save_checkpoint
from upvit_mm.data.image_set import ImageSet
from upvit_mm.files import sha256_of, write_text_atomically
from upvit_mm.pruning import PrunePlan, slice_state
from upvit_mm.pruning.budget import Budget
from upvit_mm.pruning.costs import count_macs, count_params
from upvit_mm.pruning.importance import Scores
from upvit_mm.pruning.methods import METHODS
from upvit_mm.pruning.posterior import PosteriorNet
from upvit_mm.pruning.score_file import scores_digest
from upvit_mm.pruning.shared_work import Crew
from upvit_mm.workflow.dense_classifier import DenseClassifier
from upvit_mm.workflow.job_images import JobImages
from upvit_mm.workflow.job_plan import JobPlan
from upvit_mm.workflow.job_scores import JobScores
from upvit_mm.workflow.ledger import Ledger, fingerprint
from upvit_mm.workflow.posteriors import build_net, judge
from upvit_mm.workflow.prune_checks import check_goal, check_images, check_readout
from upvit_mm.workflow.prune_report import write_report
from upvit_mm.workflow.prune_settings import Goal, PruneSettings, goal_text
from upvit_mm.workflow.repairing import compensate_resumably

logger = logging.getLogger('upvit_mm')
DETECTOR_SIZE = (800, 1333)


@dataclass(frozen=True)
class Outcome:
    """The result of pruning.

    Attributes:
        plan: kept channels and blocks.
        held_out: ``kl`` to the dense posteriors and, if labels are known, ``top1`` in % on held-out images, for
            ``dense``, ``sliced`` and, if asked for, ``compensated``; empty if nothing was evaluated.
    """

    plan: PrunePlan
    held_out: dict[str, dict[str, float]]


class PruneJob:
    """Score, plan, slice, compensate and evaluate; a step is skipped when its inputs have not changed.

    Args:
        cfg: mmpretrain config of the dense classifier: its backbone, head and data.
        checkpoint: its weights, in any layout that ``upvit_mm.checkpoints`` knows.
        goal: an architecture, a budget, or a plan.
        work_dir: gets ``proxy.txt``, ``scores.pt``, ``plan.json``, ``arch.json``, ``sliced.pth``, ``report.json``,
            ``report.md`` and ``widths.png``.
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
        init_default_scope('mmpretrain')
        self.cfg, self.goal, self.settings, self.work_dir, self.crew = cfg, goal, settings, Path(work_dir), crew
        self.network = DenseClassifier(cfg, checkpoint, settings.device)
        self.source = self.network.arch
        self.ledger = Ledger(self.work_dir)
        self.images = JobImages(cfg, settings, self.ledger)
        self.planning = JobPlan(self.network, goal, settings, self.images)
        self.scoring = JobScores(self.network, self.images, self.planning, crew, self._check_images, scores_file)
        scores_images = not (scores_file or isinstance(goal, PrunePlan)) and METHODS[settings.method].needs_images
        needs_head = scores_images or self.planning.chooses_blocks
        self._parts = ['train'] * (needs_head or settings.compensate) + ['val'] * bool(settings.eval_images)
        self._check_head(needs_head)
        check_goal(goal, self.source, settings, self.network.num_classes)
        if isinstance(goal, PrunePlan):
            self.goal = replace(goal, source_arch=self.source)  # the same network, with its name here

    @property
    def dense(self) -> PosteriorNet:
        """The network that is pruned."""
        return self.network.net

    @property
    def proxy(self) -> ImageSet:
        """Images for scoring and compensation."""
        return self.images.proxy

    # ------------------------------------------------------------------ the steps

    def run(self) -> Outcome | None:
        """Run all steps; None in all processes except the first."""
        if isinstance(self.goal, PrunePlan):
            plan, scores = None if self.crew.rank else self._given_plan(self.goal), None
        else:
            scores = self.scores()
            plan = None if self.crew.rank else self.plan(scores)
        if plan is None:
            return None
        self.slice(plan)
        return Outcome(plan, self.judge(plan, scores))

    def target(self) -> ArchSpec | None:
        """The architecture of the result; None in all processes except the first.

        Scores are made only if each block gets its own widths; all processes take part in that.
        """
        scores = self.scores() if self.planning.spends_by_score else None
        return None if self.crew.rank else self.planning.target(scores)

    def scores(self) -> Scores | None:
        """Scores by dim name, from the file given, from an earlier run or made now; None in other processes."""
        return self.scoring.get()

    def plan(self, scores: Scores) -> PrunePlan:
        """The plan. Blocks are chosen with images, so they are kept from an earlier run."""
        planning, sha256 = self.planning, self.network.sha256
        data = self.images.proxy_data if planning.chooses_blocks else None
        inputs = fingerprint('plan', sha256, scores_digest(scores), str(self.goal), data, planning.inputs)
        known = self.ledger.is_current('plan', inputs)
        plan = PrunePlan.load(self.work_dir / 'plan.json') if known else planning.make(scores)
        meta = {'tool': 'prune', 'goal': goal_text(self.goal), 'method': self.scoring.method}
        plan.meta.update(meta, **self._provenance(plan.target_arch))
        if not known:
            plan.save(self.work_dir / 'plan.json')
            self._record('plan', inputs, 'plan.json')
        return plan

    def slice(self, plan: PrunePlan) -> None:
        """``arch.json`` and ``sliced.pth``; with compensation also ``plain.pth``, the network without it."""
        s = self.settings
        plan_text = [plan.source_arch.to_dict(), plan.target_arch.to_dict(), plan.kept_blocks]
        plan_text += [{name: kept.tolist() for name, kept in plan.kept.items()}]
        inputs = [plan_text, self.network.sha256, s.some('compensate', 'ridge')]
        inputs = fingerprint('slice', inputs, self.images.proxy_data if s.compensate else None)
        if self.ledger.is_current('slice', inputs):
            return
        self._check_images()
        state = slice_state(self.network.state, plan)
        plan.target_arch.save_json(self.work_dir / 'arch.json')
        files = ['arch.json', 'sliced.pth']
        if s.compensate:
            self._save(plan, state, 'plain.pth')
            files.append('plain.pth')
            net = build_net(plan.target_arch, state, s.device)
            partial = self.work_dir / 'partial' / f'compensation-{inputs[:16]}.pt'
            compensate_resumably(self.dense, net, plan, self.proxy, s.ridge, partial)
            state = {f'backbone.{k}': v.cpu() for k, v in net.backbone.state_dict().items()}
            if net.head is not None:
                state |= {f'head.fc.{k}': v.cpu() for k, v in net.head.state_dict().items()}
        self._save(plan, state, 'sliced.pth')
        self._record('slice', inputs, *files)
        shutil.rmtree(self.work_dir / 'partial', ignore_errors=True)

    def judge(self, plan: PrunePlan, scores: Scores | None) -> dict[str, dict[str, float]]:
        """Held-out results, and the report of everything."""
        s, report = self.settings, self.work_dir / 'report.json'
        hashes = {name: sha256_of(self.work_dir / name) for name in ('sliced.pth', 'plan.json')}
        data = self.images.held_out_data if s.eval_images else None
        digest = None if scores is None else scores_digest(scores)
        inputs = fingerprint('judge', hashes, self.network.sha256, data, digest)
        if self.ledger.is_current('judge', inputs):
            return json.loads(report.read_text(encoding='utf-8'))['held_out']
        results = {}
        if s.eval_images:
            results['dense'] = judge(self.dense, self.dense, self.images.held_out)
            files = {'sliced': 'plain.pth', 'compensated': 'sliced.pth'} if s.compensate else {'sliced': 'sliced.pth'}
            for name, file in files.items():
                state = load_classifier(str(self.work_dir / file), arch=plan.target_arch)
                net = build_net(plan.target_arch, state, s.device)
                results[name] = judge(self.dense, net, self.images.held_out)
            if s.compensate and results['compensated']['kl'] > results['sliced']['kl']:
                logger.warning('compensation made the network worse; use more images, or a larger ridge')
        images = len(self.images.held_out.numbers) if s.eval_images else 0
        content = {'held_out': results, 'images': images, **plan.meta}
        write_text_atomically(report, json.dumps(content, indent=2) + '\n')
        write_report(self.work_dir, plan, scores, content)
        self._record('judge', inputs, 'report.json', 'report.md', 'widths.png')
        return results

    def costs(self, target: ArchSpec) -> dict[str, dict[str, int]]:
        """Costs of the dense and the pruned classifier by name of the count."""
        sizes = dict.fromkeys([(self.source.img_size,) * 2, DETECTOR_SIZE])
        if isinstance(self.goal, Budget) and self.goal.metric == 'macs':
            sizes[self.goal.size_for(self.source)] = None
        costs, windows, classes = {}, self.settings.windows, self.network.num_classes
        for name, arch in (('dense', self.source), ('pruned', target)):
            macs = {f'macs@{h}x{w}': count_macs(arch, (h, w), classes, windows) for h, w in sizes}
            costs[name] = macs | {'params': count_params(arch, classes)}
            costs[name]['params of the backbone'] = count_params(arch)
        return costs

    # --------------------------------------------------------------------- parts

    def _check_head(self, needed: bool) -> None:
        """If posteriors are needed, refuse a checkpoint without a head, or a config that uses it in another way."""
        s, network = self.settings, self.network
        if not network.num_classes and (needed or s.eval_images):
            without = ' or '.join(name for name, method in METHODS.items() if not method.needs_images)
            raise ValueError(
                f'checkpoint {network.checkpoint!r} has no linear head: importance and KL are measured on class '
                f'posteriors. A backbone alone needs --scores, --plan or --method {without}, a target of the same '
                'depth, and --eval-images 0.'
            )
        if network.num_classes and (needed or s.eval_images or s.compensate):
            check_readout(self.cfg, self.source.kind)

    def _check_images(self) -> None:
        """Refuse missing data before hours of work, if there is work to do."""
        if not self.settings.images:
            check_images(self.cfg, self._parts, self.network.num_classes)

    def _record(self, step: str, inputs: str, *files: str) -> None:
        self.ledger.record(step, inputs, *files, data=self.images.seen)

    def _provenance(self, target: ArchSpec) -> dict:
        network = self.network
        meta = {'settings': asdict(self.settings), 'checkpoint': str(network.checkpoint), 'sha256': network.sha256}
        return meta | {'costs': self.costs(target)}

    def _given_plan(self, plan: PrunePlan) -> PrunePlan:
        belongs_to = plan.meta.get('sha256')
        if belongs_to not in (None, self.network.sha256):
            logger.warning('the plan was made for another checkpoint of this architecture (%s...)', belongs_to[:12])
        meta = {'goal': 'a given plan', 'method': 'unknown', **plan.meta, **self._provenance(plan.target_arch)}
        plan = replace(plan, meta=meta)
        plan.save(self.work_dir / 'plan.json')
        return plan

    def _save(self, plan: PrunePlan, state: dict[str, Tensor], name: str) -> None:
        save_checkpoint(self.work_dir / name, state, arch=plan.target_arch.to_dict(), **plan.meta)


def prune(cfg: Config, checkpoint: str, goal: Goal, work_dir: Path, settings: PruneSettings, **more) -> Outcome:
    """Run a whole ``PruneJob``."""
    return PruneJob(cfg, checkpoint, goal, work_dir, settings, **more).run()
