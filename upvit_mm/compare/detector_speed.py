"""Costs of detectors on this machine: latency, throughput and peak memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from upvit_mm.arch.size import Size
from upvit_mm.checkpoints import read_checkpoint
from upvit_mm.cli import default_device
from upvit_mm.models.trained_detector import load_trained
from upvit_mm.stopwatch import device_name, forward_step, in_fresh_process, peak_memory, time_alternating
from upvit_mm.workflow.whole_detector import WholeDetector, build_detector, first_images


def detector_speeds(detectors: Mapping[str, tuple[Path, str]], size: Size, batch: int, repeats: int) -> dict[str, Any]:
    """Time ``predict`` of detectors alternately on images of their test data; measure memory in separate processes.

    Args:
        detectors: by name, a config file and a checkpoint of the whole detector: the number of detections decides the
            time of the heads.
        size: ``(height, width)`` of the images.
        batch: images per batch for the throughput.
        repeats: timed runs of each detector and batch size.

    Returns:
        ``settings``: the settings of the measurement; ``detectors``: by name ``latency`` (seconds of one image: median,
        quartiles), ``throughput`` (images a second, from the median) and ``peak_bytes`` (one image).
    """
    device = default_device()
    nets = {name: _load(*files, device) for name, files in detectors.items()}
    cfg = Config.fromfile(next(iter(detectors.values()))[0])
    images = first_images(cfg, next(iter(nets.values())).detector, size, batch)
    latency = time_alternating(nets, forward_step, images[:1], repeats)
    batches = time_alternating(nets, forward_step, images, repeats)
    measured = {
        name: {
            'latency': latency[name].to_dict(),
            'throughput': batch / batches[name].median,
            'peak_bytes': in_fresh_process(_peak, files, images[:1].cpu().numpy(), device),
        }
        for name, files in detectors.items()
    }
    settings = {'device': device_name(device), 'threads': torch.get_num_threads(), 'torch': torch.__version__}
    settings |= {'size': list(size), 'batch': batch, 'repeats': repeats}
    return {'settings': settings, 'detectors': measured}


def _load(config: Path, checkpoint: str, device: str) -> WholeDetector:
    detector = build_detector(Config.fromfile(config))
    load_trained(detector, read_checkpoint(checkpoint), checkpoint)
    return WholeDetector(detector).to(device)


def _peak(files: tuple[Path, str], image: np.ndarray, device: str) -> int:
    net, x = _load(*files, device), torch.from_numpy(image).to(device)
    forward_step(net, x[..., :64, :64])  # libraries load and allocate memory on first use
    return peak_memory(net, forward_step, x)
