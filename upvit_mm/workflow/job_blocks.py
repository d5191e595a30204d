"""The blocks that stay when a target has fewer of them: from an earlier run with the same inputs, or chosen now."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

from upvit_mm.arch import ArchSpec
from upvit_mm.files import write_text_atomically
from upvit_mm.pruning.batch import Batch
from upvit_mm.pruning.crew import Crew
from upvit_mm.pruning.criteria import Posterior
from upvit_mm.pruning.depth import check_blocks
from upvit_mm.pruning.depth_scores import check_depths, choose_blocks, distance_sums
from upvit_mm.pruning.importance import Sums
from upvit_mm.pruning.plan import Blocks
from upvit_mm.pruning.shared_work import score_in_parts
from upvit_mm.workflow.job_images import JobImages
from upvit_mm.workflow.ledger import fingerprint
from upvit_mm.workflow.scoring_progress import ScoringProgress
from upvit_mm.workflow.subject import Subject


class JobBlocks:
    """Chooses blocks with all processes of a job; ``blocks.json`` in its work dir keeps them.

    Each removal is scored in parts (``score_in_parts``), so an interrupted choice goes on with the next batch.

    Args:
        dense: the network to prune.
        target: its depths are to be reached.
        images: they give the proxy set, settings, ledger and work dir.
        crew: the processes of the job.
        check: called before anything is scored.
    """

    def __init__(self, dense: Subject, target: ArchSpec, images: JobImages, crew: Crew, check: Callable[[], None]):
        self.dense, self.target, self.images, self.crew, self.check = dense, target, images, crew, check
        self.settings, self.ledger, self.folder = images.settings, images.ledger, images.ledger.folder

    def get(self) -> Blocks:
        """The blocks, in all processes; all must call it.

        Raises:
            ValueError: see ``choose_blocks``.
        """
        check_depths(self.dense.arch, self.target.depths)
        inputs, known = self.crew.share(self._chosen_before)
        return self._choose(inputs) if known is None else known

    def _chosen_before(self) -> tuple[str, Blocks | None]:
        """Fingerprint of everything that decides the choice, and the blocks of an earlier one with the same."""
        criterion = self.dense.criterion_name(self.settings)
        decides = {'criterion': criterion, 'depths': self.target.depths}
        if criterion != Posterior.name:
            decides |= self.settings.some('window_size')
        inputs = fingerprint('blocks', self.dense.identity, self.images.proxy_data, decides)
        if not self.ledger.is_current('blocks', inputs):
            return inputs, None
        kept = json.loads((self.folder / 'blocks.json').read_text(encoding='utf-8'))['kept_blocks']
        return inputs, tuple(check_blocks('kept_blocks', *of_stage) for of_stage in zip(kept, self.dense.arch.depths))

    def _choose(self, inputs: str) -> Blocks:
        self.check()
        proxy, parts = self.images.proxy, self.folder / 'partial' / f'blocks-{inputs[:16]}'
        net, criterion = self.dense.scored(self.settings, proxy, self.crew)

        def distances(done: int, closed: list[list[str]]) -> list[float]:
            images = sum(proxy.size_of(k) for k in range(self.crew.rank, len(proxy), self.crew.size))
            with ScoringProgress({'blocks': images * len(closed)}, 'blocks') as progress:

                def sums_of(batch: Batch, wanted: set[str]) -> Sums:
                    yield 'blocks', distance_sums(net, batch, closed, criterion, progress.advance)

                def resumed(name: str, count: int) -> None:
                    progress.resume('blocks', count * len(closed))

                folder = parts / f'removal-{done}'
                means = score_in_parts(proxy, sums_of, ['blocks'], folder, self.crew, resumed)
            return self.crew.share(lambda: means)['blocks'].tolist()

        blocks = choose_blocks(net, proxy, self.target.depths, criterion, distances)
        if self.crew.rank == 0:
            content = {'kept_blocks': [[list(pair) for pair in pairs] for pairs in blocks]}
            write_text_atomically(self.folder / 'blocks.json', json.dumps(content, indent=2) + '\n')
            self.ledger.record('blocks', inputs, 'blocks.json', data=self.images.seen)
        self.crew.share(lambda: None)  # the parts are deleted when all is saved
        shutil.rmtree(parts, ignore_errors=True)
        return blocks
