"""The pruning job: from a dense classifier to files that build anywhere."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from upvit_mm.arch import ArchSpec
from upvit_mm.checkpoints import load_classifier, local_file, save_checkpoint
from upvit_mm.data.image_set import ImageSet
from upvit_mm.files import sha256_of, write_text_atomically
from upvit_mm.pruning import PrunePlan, plan_for_target, prunable_dims, slice_state
from upvit_mm.pruning.budget import Budget, target_for_budget
from upvit_mm.pruning.compensate import compensate
from upvit_mm.pruning.costs import count_macs, count_params
from upvit_mm.pruning.depth_scores import choose_blocks
from upvit_mm.pruning.importance import Scores
from upvit_mm.pruning.plan import Blocks
from upvit_mm.pruning.posterior import PosteriorNet
from upvit_mm.pruning.score_file import load_scores, save_scores, scores_digest
from upvit_mm.pruning.scoring import Crew
from upvit_mm.pruning.table import block_name
from upvit_mm.stopwatch import process_peak
from upvit_mm.workflow.job_images import JobImages
from upvit_mm.workflow.ledger import Ledger, fingerprint
from upvit_mm.workflow.posteriors import build_net, judge
from upvit_mm.workflow.prune_checks import check_goal, check_images, check_readout
from upvit_mm.workflow.prune_report import write_report
from upvit_mm.workflow.scoring import score_images, score_weights
from upvit_mm.workflow.settings import Goal, Settings, goal_text, source_of

logger = logging.getLogger('upvit_mm')
DETECTOR_SIZE = (800, 1333)


@dataclass(frozen=True)
class Outcome:
    """What pruning did.

    Attributes:
        plan: what stayed.
        held_out: ``kl`` to the dense posteriors and, if labels are known, ``top1`` in % on held-out images, for
            ``dense``, ``sliced`` and, if asked for, ``compensated``; empty when nothing was judged.
    """

    plan: PrunePlan
    held_out: dict[str, dict[str, float]]


class PruneJob:
    """Scores, plans, slices, compensates and judges; every step is skipped when its inputs have not changed.

    Args:
        cfg: mmpretrain config of the dense classifier: its backbone, head and data.
        checkpoint: its weights, in any layout that ``upvit_mm.checkpoints`` knows.
        goal: the architecture to reach, a budget to meet, or a plan to carry out.
        work_dir: gets ``proxy.txt``, ``scores.pt``, ``plan.json``, ``arch.json``, ``sliced.pth``, ``report.json``,
            ``report.md`` and ``widths.png``.
        settings: how.
        scores_file: scores to use instead of scoring.
        crew: which of the job's processes this is; all score, the first does the rest.

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
        settings: Settings,
        scores_file: str | None = None,
        crew: Crew = Crew(),  # noqa: B008 (a frozen value)
    ):
        init_default_scope('mmpretrain')
        self.cfg, self.checkpoint, self.goal, self.settings = cfg, checkpoint, goal, settings
        self.work_dir, self.scores_file, self.crew = Path(work_dir), scores_file, crew
        self.source = source_of(cfg)
        local = local_file(checkpoint)
        self.state = load_classifier(local, arch=self.source)
        self.num_classes = len(self.state.get('head.fc.bias', ()))
        self._scores_images = (
            not scores_file and not isinstance(goal, PrunePlan) and settings.method not in ('magnitude', 'random')
        )
        self._chooses_blocks = isinstance(goal, ArchSpec) and goal.depths != self.source.depths
        needs_head = self._scores_images or self._chooses_blocks
        if not self.num_classes and (needs_head or settings.eval_images):
            raise ValueError(
                f'checkpoint {checkpoint!r} has no linear head: importance and KL are measured on class posteriors. A '
                'backbone alone needs --scores, --plan or --method magnitude, a target of its own depth, and '
                '--eval-images 0.'
            )
        if self.num_classes and (needs_head or settings.eval_images or settings.compensate):
            check_readout(cfg, self.source.family)
        self._parts = ['train'] * (needs_head or settings.compensate) + ['val'] * bool(settings.eval_images)
        check_goal(goal, self.source, settings, self.num_classes)
        if isinstance(goal, PrunePlan):
            self.goal = replace(goal, source_arch=self.source)  # the same network, by the name that it has here
        self.sha256 = sha256_of(local)
        self.ledger = Ledger(self.work_dir)
        self.images = JobImages(cfg, settings, self.ledger)
        self.method = settings.method  # of the scores; a file of scores knows its own

    # ----------------------------------------------------------- what it works on

    @cached_property
    def dense(self) -> PosteriorNet:
        return build_net(self.source, self.state, self.settings.device)

    @property
    def proxy(self) -> ImageSet:
        """Images on which it scores and compensates."""
        return self.images.proxy

    @cached_property
    def _blocks(self) -> Blocks:
        """The blocks that stay for a target of other depths."""
        return choose_blocks(self.dense, self.proxy, self.goal.depths)

    # ------------------------------------------------------------------ the steps

    def run(self) -> Outcome | None:
        """All steps; None in all processes but the first."""
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
        """The architecture that comes out; None in all processes but the first.

        Scores are made only where each block gets its own widths; the other processes take part in that.
        """
        by_score = isinstance(self.goal, Budget) and self.settings.non_uniform
        scores = self.scores() if by_score else None
        if self.crew.rank:
            return None
        return self.goal.target_arch if isinstance(self.goal, PrunePlan) else self._target_from(scores)

    def scores(self) -> Scores | None:
        """Scores by dim name, from the file given, from an earlier run or made now; None in other processes."""
        if self.scores_file:
            return None if self.crew.rank else self._given_scores(self.scores_file)
        if self.crew.rank and not self._scores_images:
            return None  # the first process does it alone
        inputs, done = self.crew.share(self._scored_before) if self._scores_images else self._scored_before()
        if done:
            self.crew.leave()
            logger.info('%s: scored before from the same inputs', self.work_dir / 'scores.pt')
            return None if self.crew.rank else load_scores(self.work_dir / 'scores.pt', self.source)[0]
        self._check_images()
        if not self._scores_images:
            return self._save_scores(score_weights(self.settings, self.source, self.state), inputs)
        parts = self.work_dir / 'partial'
        scores = score_images(self.dense, self.proxy, self.settings, parts / inputs[:16], self.crew, self._cut)
        if scores is not None:
            write_text_atomically(self.work_dir / 'proxy.txt', '\n'.join(self.proxy.paths) + '\n')
            logger.info('scored; peak memory of this process %.0f MiB', process_peak(self.settings.device) / 2**20)
            self._save_scores(scores, inputs, 'proxy.txt', images=len(self.proxy.numbers))
        self.crew.share(lambda: None)  # the parts go when all is saved
        self.crew.leave()  # the first process goes on alone
        shutil.rmtree(parts, ignore_errors=True)
        return scores

    def plan(self, scores: Scores) -> PrunePlan:
        """What stays. Blocks are chosen on images, and so kept from an earlier run."""
        data = self.images.proxy_data if self._chooses_blocks else None
        inputs = fingerprint('plan', self.sha256, scores_digest(scores), str(self.goal), data, self._plan_inputs())
        known = self.ledger.is_current('plan', inputs)
        plan = PrunePlan.load(self.work_dir / 'plan.json') if known else self._plan_from(scores)
        meta = {'tool': 'prune', 'goal': goal_text(self.goal), 'method': self.method, 'settings': asdict(self.settings)}
        plan.meta.update(meta, checkpoint=str(self.checkpoint), sha256=self.sha256, costs=self.costs(plan.target_arch))
        if not known:
            plan.save(self.work_dir / 'plan.json')
            self._record('plan', inputs, 'plan.json')
        return plan

    def slice(self, plan: PrunePlan) -> None:
        """``arch.json`` and ``sliced.pth``; with compensation also ``plain.pth``, the network without it."""
        s = self.settings
        plan_text = [plan.source_arch.to_dict(), plan.target_arch.to_dict(), plan.kept_blocks]
        plan_text += [{name: kept.tolist() for name, kept in plan.kept.items()}]
        inputs = [plan_text, self.sha256, s.some('compensate', 'ridge')]
        inputs = fingerprint('slice', inputs, self.images.proxy_data if s.compensate else None)
        if self.ledger.is_current('slice', inputs):
            return
        self._check_images()
        state = slice_state(self.state, plan)
        plan.target_arch.save_json(self.work_dir / 'arch.json')
        files = ['arch.json', 'sliced.pth']
        if s.compensate:
            self._save(plan, state, 'plain.pth')
            files.append('plain.pth')
            net = build_net(plan.target_arch, state, s.device)
            compensate(self.dense, net, plan, self.proxy, s.ridge)
            state = {f'backbone.{k}': v.cpu() for k, v in net.backbone.state_dict().items()}
            if net.head is not None:
                state |= {f'head.fc.{k}': v.cpu() for k, v in net.head.state_dict().items()}
        self._save(plan, state, 'sliced.pth')
        self._record('slice', inputs, *files)

    def judge(self, plan: PrunePlan, scores: Scores | None) -> dict[str, dict[str, float]]:
        """Held-out results, and the report of everything."""
        s, report = self.settings, self.work_dir / 'report.json'
        hashes = {name: sha256_of(self.work_dir / name) for name in ('sliced.pth', 'plan.json')}
        data = self.images.held_out_data if s.eval_images else None
        inputs = fingerprint('judge', hashes, self.sha256, data, None if scores is None else scores_digest(scores))
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
        costs, windows = {}, self.settings.windows
        for name, arch in (('dense', self.source), ('pruned', target)):
            macs = {f'macs@{h}x{w}': count_macs(arch, (h, w), self.num_classes, windows) for h, w in sizes}
            costs[name] = macs | {'params': count_params(arch, self.num_classes)}
            costs[name]['params of the backbone'] = count_params(arch)
        return costs

    # --------------------------------------------------------------------- parts

    def _check_images(self) -> None:
        """Refuse missing data before hours of work, where there is work to do."""
        if not self.settings.images:
            check_images(self.cfg, self._parts, self.num_classes)

    def _scored_before(self) -> tuple[str, bool]:
        """Fingerprint of what decides the scores, and whether scores made from it are there."""
        data = self.images.proxy_data if self._scores_images else None
        inputs = fingerprint('scores', self.sha256, self.source.to_dict(), data, self._method_inputs())
        return inputs, self.ledger.is_current('scores', inputs)

    def _save_scores(self, scores: Scores, inputs: str, *files: str, **meta) -> Scores:
        meta |= {'method': self.settings.method, 'checkpoint_sha256': self.sha256, 'inputs': inputs}
        save_scores(self.work_dir / 'scores.pt', scores, self.source, **meta)
        self._record('scores', inputs, 'scores.pt', *files)
        return scores

    def _record(self, step: str, inputs: str, *files: str) -> None:
        self.ledger.record(step, inputs, *files, data=self.images.seen)

    def _method_inputs(self) -> dict:
        s = self.settings
        inputs = s.some('method', 'seed')
        if s.method in ('fisher', 'hybrid'):
            inputs |= s.some('draws')
        if s.method in ('kl', 'hybrid'):
            inputs |= s.some('max_rows')
        if s.method == 'hybrid':
            inputs |= {'goal': str(self.goal), **s.some('near_share'), **self._plan_inputs()}
        return inputs

    def _plan_inputs(self) -> dict:
        return self.settings.some(
            'head_policy', 'tie_qkv', 'round_to', 'min_share', 'non_uniform', 'window_size', 'max_rows'
        )

    def _target_from(self, scores: Scores | None) -> ArchSpec:
        if isinstance(self.goal, ArchSpec):
            return replace(self.goal, img_size=self.source.img_size)
        s = self.settings
        assert scores is not None or not s.non_uniform, 'widths by score need scores'
        by_score = scores if s.non_uniform else None
        return target_for_budget(self.source, self.goal, s.grain, self.num_classes, by_score, s.windows)

    def _plan_from(self, scores: Scores) -> PrunePlan:
        target, blocks = self._target_from(scores), None
        if target.depths != self.source.depths:
            blocks = self._blocks
        return plan_for_target(self.source, target, scores, self.settings.head_policy, self.settings.tie_qkv, blocks)

    def _cut(self, scores: Scores) -> tuple[dict[str, Tensor], dict[str, int]]:
        """What a plan from these scores keeps, and the runs of each dim in which it chose."""
        plan = self._plan_from(scores)
        groups = {name: dim.groups for name, dim in prunable_dims(self.source).items()}
        if self.settings.head_policy == 'regroup':
            for i, pairs in enumerate(plan.kept_blocks):
                for (attn, _), heads in zip(pairs, plan.target_arch.num_heads[i]):
                    groups |= {f'{block_name(i, attn)}.{kind}': heads for kind in ('qk', 'v')}
        return plan.kept, groups

    def _given_scores(self, path: str) -> Scores:
        scores, meta = load_scores(path, self.source)
        self.method, belongs_to = meta.get('method', 'unknown'), meta.get('checkpoint_sha256')
        if belongs_to is None:
            logger.warning(
                '%s does not say which checkpoint was scored; make sure that it is %s', path, self.checkpoint
            )
        elif belongs_to != self.sha256:
            raise ValueError(
                f'scores {path!r} belong to another checkpoint (sha256 {belongs_to[:12]}..., {self.checkpoint!r} has '
                f'{self.sha256[:12]}...); score again.'
            )
        return scores

    def _given_plan(self, plan: PrunePlan) -> PrunePlan:
        belongs_to = plan.meta.get('sha256')
        if belongs_to not in (None, self.sha256):
            logger.warning('the plan was made for another checkpoint of this architecture (%s...)', belongs_to[:12])
        meta = {'goal': 'a given plan', 'method': 'unknown', **plan.meta, 'settings': asdict(self.settings)}
        meta |= {'checkpoint': str(self.checkpoint), 'sha256': self.sha256, 'costs': self.costs(plan.target_arch)}
        plan = replace(plan, meta=meta)
        plan.save(self.work_dir / 'plan.json')
        return plan

    def _save(self, plan: PrunePlan, state: dict[str, Tensor], name: str) -> None:
        save_checkpoint(self.work_dir / name, state, arch=plan.target_arch.to_dict(), **plan.meta)


def prune(cfg: Config, checkpoint: str, goal: Goal, work_dir: Path, settings: Settings, **more) -> Outcome:
    """Run a whole ``PruneJob``."""
    return PruneJob(cfg, checkpoint, goal, work_dir, settings, **more).run()
