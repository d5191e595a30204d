"""How fast channels are scored: forward passes, the estimate, and the exact score of all channels."""

from __future__ import annotations

from upvit_mm.arch import resolve_arch
from upvit_mm.benchmark.gpu.notebook import Notebook
from upvit_mm.benchmark.gpu.setting import Setting
from upvit_mm.benchmark.pruning import FISHER_DRAWS, time_large_network

PROXY_IMAGES = 5000  # of the paper's proxy set "5k", for which the hours of the exact score are told


def measure_scoring(setting: Setting, device: str, notebook: Notebook) -> None:
    """Time scoring with random weights and images. The exact score is extrapolated from a few channels of each dim."""
    for name in setting.scored:
        images = setting.scored_images
        figures = time_large_network(
            resolve_arch(name), images, device=device, candidates=setting.candidates, amp='bf16'
        )
        passes = {'forward': 'forward', f'fisher, {FISHER_DRAWS} draws': 'fisher'}
        passes[f'fisher, {FISHER_DRAWS} draws, bf16'] = 'fisher amp'
        notebook.add(
            work='scoring',
            network=figures['arch'],
            batch=images,
            channels=figures['channels'],
            images_per_second={title: images / figures[key] for title, key in passes.items()},
            kl_hours=figures['kl'] / images * PROXY_IMAGES / 3600,
        )
