"""The scores of a pruning job: from a file, from an earlier run with the same inputs, or made now."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable

from upvit_mm.files import write_text_atomically
from upvit_mm.pruning.crew import Crew
from upvit_mm.pruning.criteria import Posterior
from upvit_mm.pruning.importance import Scores
from upvit_mm.pruning.methods import METHODS
from upvit_mm.pruning.score_file import load_scores, save_scores
from upvit_mm.stopwatch import process_peak
from upvit_mm.workflow.job_images import JobImages
from upvit_mm.workflow.job_plan import JobPlan
from upvit_mm.workflow.ledger import fingerprint
from upvit_mm.workflow.rank_agreement import rank_agreement
from upvit_mm.workflow.run_method import score_images
from upvit_mm.workflow.subject import Subject

logger = logging.getLogger('upvit_mm')


class JobScores:
    """Scores by the method of the settings, in ``scores.pt`` and ``proxy.txt`` of the job's work dir.

    Args:
        dense: the network to score.
        images: they give the proxy set, settings, ledger and work dir.
        planning: planning of the job: a method with a second scoring needs to know what a plan would keep.
        crew: the processes of the job, and which one this is.
        check: called before anything is scored.
        file: scores to use instead.

    Attributes:
        method: name of the method that made the scores; a file gives its own.
        agreement: of scores in a lower precision, see ``rank_agreement``; else None.
    """

    def __init__(
        self,
        dense: Subject,
        images: JobImages,
        planning: JobPlan,
        crew: Crew,
        check: Callable[[], None],
        file: str | None,
    ):
        self.dense, self.images, self.planning = dense, images, planning
        self.crew, self.check, self.file = crew, check, file
        self.settings, self.ledger, self.folder = images.settings, images.ledger, images.ledger.folder
        self.method, self.agreement = self.settings.method, None

    def get(self) -> Scores | None:
        """Scores by dim name for the first process, None for others.

        Raises:
            ValueError: the file's scores belong to another checkpoint or architecture; whatever scoring raises.
        """
        if self.file:
            return None if self.crew.rank else self._given(self.file)
        method = METHODS[self.settings.method]
        if self.crew.rank and not method.needs_images:
            return None  # only the first process does it
        inputs, done = self.crew.share(self._scored_before) if method.needs_images else self._scored_before()
        if done:
            self.crew.leave()
            logger.info('%s: scored before from the same inputs', self.folder / 'scores.pt')
            if self.crew.rank:
                return None
            scores, meta = load_scores(self.folder / 'scores.pt', self.dense.arch)
            self.agreement = meta.get('agreement')
            return scores
        self.check()
        if method.needs_images:
            return self._score(inputs)
        own = self.settings.some(*method.settings)
        return self._save(method.of_weights(self.dense.arch, self.dense.state, **own), inputs)

    def text(self) -> str:
        """One line: the source of the scores, and the settings that they depend on."""
        if self.file:
            return f'scores: {self.file}'
        method = METHODS[self.settings.method]
        reads = ', '.join(f'{name} = {value}' for name, value in self.settings.some(*method.reads).items())
        needs = ', '.join(method.needs) or 'nothing'
        return f'method {method.name}: {method.summary}; needs {needs}; {reads or "no settings"}'

    def _score(self, inputs: str) -> Scores | None:
        """Scores from images, by all processes; ``inputs`` is the fingerprint of everything that decides the scores."""
        s, proxy, parts = self.settings, self.images.proxy, self.folder / 'partial'
        net, criterion = self.dense.scored(s, proxy, self.crew)
        scores = score_images(net, criterion, proxy, s, parts / inputs[:16], self.crew, self.planning.cut)
        if scores is not None:
            write_text_atomically(self.folder / 'proxy.txt', '\n'.join(proxy.paths) + '\n')
            logger.info('scored; peak memory of this process %.0f MiB', process_peak(s.device) / 2**20)
            if s.amp:
                method = METHODS[s.method]
                own = {**s.some(*method.settings), 'criterion': criterion}
                self.agreement = rank_agreement(method, net, proxy[0], own)
            self._save(scores, inputs, 'proxy.txt', images=len(proxy.numbers), agreement=self.agreement)
        self.crew.share(lambda: None)  # the parts are deleted when all is saved
        self.crew.leave()  # the first process continues alone
        shutil.rmtree(parts, ignore_errors=True)
        return scores

    def _scored_before(self) -> tuple[str, bool]:
        """Fingerprint of everything that decides the scores, and whether such scores exist."""
        method = METHODS[self.settings.method]
        data = self.images.proxy_data if method.needs_images else None
        decides = self.settings.some('method', 'seed', *method.reads)
        if method.criteria:
            decides |= {'criterion': self.dense.criterion_name(self.settings)}
            if decides['criterion'] != Posterior.name:
                decides |= self.settings.some('window_size')
        if method.near_cut:
            decides |= {'goal': str(self.planning.goal), **self.planning.inputs}
        inputs = fingerprint('scores', self.dense.identity, data, decides)
        return inputs, self.ledger.is_current('scores', inputs)

    def _save(self, scores: Scores, inputs: str, *files: str, **meta) -> Scores:
        meta |= {'method': self.settings.method, 'checkpoint_sha256': self.dense.sha256, 'inputs': inputs}
        save_scores(self.folder / 'scores.pt', scores, self.dense.arch, **meta)
        self.ledger.record('scores', inputs, 'scores.pt', *files, data=self.images.seen)
        return scores

    def _given(self, path: str) -> Scores:
        scores, meta = load_scores(path, self.dense.arch)
        self.agreement = meta.get('agreement')
        self.method, belongs_to = meta.get('method', 'unknown'), meta.get('checkpoint_sha256')
        sha256, checkpoint = self.dense.sha256, self.dense.checkpoint
        if belongs_to is None:
            logger.warning('%s does not say which checkpoint was scored; make sure that it is %s', path, checkpoint)
        elif belongs_to != sha256:
            raise ValueError(
                f'scores {path!r} belong to another checkpoint (sha256 {belongs_to[:12]}..., {checkpoint!r} has '
                f'{sha256[:12]}...); score again.'
            )
        return scores
