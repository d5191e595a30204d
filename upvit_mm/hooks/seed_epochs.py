"""The same random numbers in an epoch, from wherever the run was started."""

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
    """Seed Python, NumPy and torch at the start of every epoch, in this process and in the loader's workers.

    mmengine seeds once, before the first epoch, so a resumed run has other crops, mixes and dropped paths than the run
    that it continues. With this hook an epoch's random numbers depend only on seed, epoch and process. So two epochs
    equal one epoch and one resumed epoch, bit for bit on a CPU with the same numbers of processes, workers and threads.
    (A GPU also needs ``randomness.deterministic``.) The order of the images is also the same if the config has no seed.

    Workers start again in every epoch, because nothing can set the random state of a running worker. That takes a
    fraction of a second; mmengine alone would give such workers the same numbers in every epoch.

    Note:
        For training by epochs; a training by iterations is seeded once, as in mmengine. Workers with their own
        ``worker_init_fn`` are not changed.

    Raises:
        ValueError: the training loader's workers are persistent.
    """

    priority = 'LOWEST'  # then random numbers of other hooks before the epoch do not matter

    def before_train(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        if loader.num_workers and loader.persistent_workers:
            raise ValueError(
                'train_dataloader.persistent_workers = True: SeedEveryEpoch seeds workers when they start; set it to '
                'False.'
            )
        given = (runner.cfg.get('train_dataloader') or {}).get('sampler') or {}
        seeds = [runner.seed]  # with `diff_rank_seed` each process has its own seed, but they share one order
        broadcast_object_list(seeds)
        if 'seed' not in given:  # a resumed run gets the seed of its checkpoint after the sampler was made
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
