"""The same random numbers in an epoch, wherever the run was started."""

from __future__ import annotations

from functools import partial

import numpy as np
from mmengine.dataset import worker_init_fn
from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed

from upvit_mm.registry import HOOKS


@HOOKS.register_module()
class SeedEveryEpoch(Hook):
    """Seeds Python, NumPy and torch anew for every epoch, in this process and in the loader's workers.

    mmengine seeds once, before the first epoch, so a resumed run draws other crops, mixes and paths to drop than the
    run that it goes on with. With this hook an epoch's numbers depend on seed, epoch and process alone: two epochs are
    one epoch and one resumed, bit for bit on a CPU with the same numbers of processes, workers and threads. (On a GPU
    it takes ``randomness.deterministic`` too.) The order of the images follows as well where the config has no seed.

    Workers start anew in every epoch, because nothing reaches the random state of one that lives on. That takes
    a fraction of a second; mmengine alone would give such workers the same numbers in every epoch.

    Note:
        For training by epochs; a training by iterations is seeded once, as mmengine does it. Workers with a
        ``worker_init_fn`` of their own are left to it.

    Raises:
        ValueError: the training loader's workers are persistent.
    """

    priority = 'LOWEST'  # what other hooks draw before the epoch does not matter then

    def before_train(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        if loader.num_workers and loader.persistent_workers:
            raise ValueError(
                'train_dataloader.persistent_workers = True: SeedEveryEpoch seeds workers when they start; set it to '
                'False.'
            )
        given = (runner.cfg.get('train_dataloader') or {}).get('sampler') or {}
        seeds = [runner.seed]  # with `diff_rank_seed` each process has one of its own, but they share one order
        broadcast_object_list(seeds)
        if 'seed' not in given:  # a resumed run has the seed of its checkpoint, which came after the sampler was made
            for sampler in (loader.sampler, getattr(loader.batch_sampler, 'sampler', None)):
                if hasattr(sampler, 'seed'):
                    sampler.seed = seeds[0]

    def before_train_epoch(self, runner: Runner) -> None:
        loader, seed = runner.train_dataloader, seed_of_epoch(runner.seed, runner.epoch, runner.rank)
        start = loader.worker_init_fn
        if isinstance(start, partial) and start.func is worker_init_fn:
            loader.worker_init_fn = partial(worker_init_fn, **start.keywords | {'seed': seed})
        set_random_seed(seed)


def seed_of_epoch(seed: int, epoch: int, rank: int) -> int:
    """A seed in 0 to 2**31 - 1, to which workers may add their numbers."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0] >> 1)
