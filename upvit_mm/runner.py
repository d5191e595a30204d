"""From the command line to an mmengine Runner, for mmdet and mmpretrain configs."""

from __future__ import annotations

import argparse
import atexit
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, init_dist, is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from upvit_mm.data.checks import check_datasets
from upvit_mm.launch import VARIABLES, place_in_job
from upvit_mm.models.backbone_settings import check_backbone_settings
from upvit_mm.models.map_strides import check_strides
from upvit_mm.openmmlab import require_mmcv_ops, require_openmmlab
from upvit_mm.optim import check_constructor, limit_decay, summary, without_options
from upvit_mm.quiet_log import leave_out_repeated
from upvit_mm.registry import scope_of


def load_config(args: argparse.Namespace) -> Config:
    """The config with the command line's overrides; ``work_dir`` and ``launcher`` set.

    Raises:
        FileNotFoundError: the config does not exist.
    """
    require_openmmlab()
    if not Path(args.config).is_file():
        raise FileNotFoundError(f'config {args.config!r} does not exist; paths are relative to {Path.cwd()}.')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(args.config)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    return cfg


def set_training_options(cfg: Config, amp: bool, auto_scale_lr: bool, resume: str | None) -> None:
    """Apply mmdet's training flags.

    Args:
        cfg: changed in place.
        amp: mixed precision with dynamic loss scaling.
        auto_scale_lr: scale the learning rate with the real batch size.
        resume: a checkpoint to continue from, ``'auto'`` for the latest in the work dir (if there is one), or None.

    Raises:
        ValueError: ``amp`` without an accelerator, or ``auto_scale_lr`` for a config without a base batch size.
    """
    if amp:
        if not torch.cuda.is_available():
            raise ValueError('--amp: mixed-precision training needs a GPU; leave it out on a CPU.')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError('--auto-scale-lr: the config has no auto_scale_lr.base_batch_size; set it.')
        cfg.auto_scale_lr.enable = True
    if resume == 'auto':  # with nothing to resume, the weights of load_from are the start; mmengine would ignore them
        cfg.resume = Path(cfg.work_dir, 'last_checkpoint').is_file()
        cfg.load_from = None if cfg.resume else cfg.get('load_from')
    elif resume:
        cfg.resume, cfg.load_from = True, resume


def build_runner(
    cfg: Config, parts: tuple[str, ...], weights: str | None = None, allow_missing: Sequence[str] = ()
) -> Runner:
    """The Runner of a config, after a check of its data; it checks its start weights and writes files atomically.

    Norms, biases, positions and tokens of our backbones have no weight decay (``upvit_mm.optim.limit_decay``). The log
    of a training has a table of its epochs (``upvit_mm.hooks.EpochTable``).

    Args:
        cfg: a whole config of mmdet or mmpretrain.
        parts: the parts that will run: of ``'train'``, ``'val'``, ``'test'``. Without ``'train'`` a checkpoint must fit
            completely.
        weights: weights of ``load_from``, see ``upvit_mm.hooks.CheckLoaded``.
        allow_missing: see ``upvit_mm.hooks.CheckLoaded``.

    Raises:
        FileNotFoundError: an annotation file or image folder is missing.
        ImportError: the config is a detector and mmcv has no working operators.
        ValueError: our backbone does not know a setting, or its maps have other strides than the heads; an annotation
            file is damaged or does not fit the config's classes, or a class has no images.
    """
    if scope_of(cfg) == 'mmdet':
        require_mmcv_ops()
    check_backbone_settings(cfg)
    check_strides(cfg)
    if 'train' in parts:
        check_constructor(cfg)
    start_processes(cfg)
    check_data(cfg, parts)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if isinstance(runner, Runner):  # FlexibleRunner's strategies keep weights in their own formats
        leave_out_repeated(runner.logger)
        part = 'train' if 'train' in parts else parts[0]
        if part == 'train' and runner.optim_wrapper is not None:  # built now: train() builds the schedulers at once
            with without_options(runner.logger):
                built = runner.build_optim_wrapper(runner.optim_wrapper)
            runner.optim_wrapper = limit_decay(built, runner.model)
            runner.logger.info(summary(runner.optim_wrapper))
        loading = dict(type='upvit_mm.CheckLoaded', part=part, weights=weights, allow_missing=allow_missing)
        others = [dict(type=f'upvit_mm.{kind}') for kind in ('CheckResumed', 'RecordArch', 'WholeCheckpoints')]
        others += [dict(type='upvit_mm.EpochTable')] if 'train' in parts else []
        others += [dict(type='upvit_mm.JudgeResumed')] if 'val' in parts else []
        for hook in (loading, *others):
            runner.register_hook(hook)
    elif cfg.get('load_from'):
        runner.logger.warning('runner_type = %r: tensors that do not load are only logged.', cfg.runner_type)
    return runner


def check_data(cfg: Config, parts: Sequence[str]) -> None:
    """``check_datasets`` in the first process of each machine; if one refuses, all end, and the message is printed
    once.

    Raises:
        FileNotFoundError: see ``check_datasets``.
        ValueError: see ``check_datasets``.
        SystemExit: the same, in all processes except the first.
    """
    refused = None
    if int(os.environ.get('LOCAL_RANK', 0)) == 0:
        try:
            check_datasets(cfg, parts)
        except (OSError, ValueError) as error:
            refused = error
    if found := next(filter(None, all_gather_object(refused)), None):
        if is_main_process():
            raise found
        sys.exit(1)


def start_processes(cfg: Config) -> None:
    """Join the process group of the config's launcher, like a Runner; on CPUs with gloo.

    mmengine's own start needs a GPU, and is skipped if the process already joined a group.
    """
    if cfg.launcher == 'none':
        return
    if cfg.launcher in VARIABLES:
        place_in_job(cfg.launcher)
    on_cpus = cfg.launcher == 'pytorch' and not torch.cuda.is_available()
    if not torch.distributed.is_initialized():
        if on_cpus:
            torch.distributed.init_process_group(backend='gloo')
        else:
            init_dist(cfg.launcher, **(cfg.get('env_cfg') or {}).get('dist_cfg', {}))
    if on_cpus:
        wrapper = dict(  # mmengine's defaults, except the device
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
        cfg.setdefault('model_wrapper_cfg', wrapper)


def end_together() -> None:
    """End this process with status 0 when all processes of the job are here; do nothing without other processes.

    At its normal exit Python removes the process group in any order. This has rarely aborted a process after all its
    work (gloo, torch 2.10), and its launcher counts that as a failure. So the exit handlers run here, and the process
    ends at once.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def leave_processes() -> None:
    """Leave the process group, so that the other processes notice it at once."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
