"""Prune a DeiT or PVTv2 to an architecture or a budget: a classifier (mmpretrain config) or a trained detector (mmdet
config), which keeps its neck and heads.

A config may hold the same settings as `prune = dict(target=..., method=...)`. The command line overrides the
config, and the config overrides the defaults that are printed here.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.config import Config
from rich.console import Console

from upvit_mm.arguments import OptionsAction
from upvit_mm.choices import CRITERIA, HEAD_POLICIES, KERNEL_WIDTHS, PRECISIONS
from upvit_mm.cli import check_device, default_device, one_line_errors, table_of
from upvit_mm.launch import VARIABLES, command_line
from upvit_mm.pruning.methods import METHODS, readers_of
from upvit_mm.workflow.prune_settings import ATTENTION, EMBED, FOR_DETECTORS, PruneSettings

if TYPE_CHECKING:
    from upvit_mm.workflow.prune import PruneJob

DEFAULTS = PruneSettings()
CHOICES = {'method': tuple(METHODS), 'criterion': CRITERIA, 'attention': ATTENTION, 'embed': EMBED}
CHOICES |= {'head_policy': HEAD_POLICIES, 'amp': PRECISIONS}


def read_by(setting: str) -> str:
    return f' ({", ".join(readers_of(setting))})'


SETTINGS = {  # help by group and setting
    'scoring': {
        'method': f'how channels are scored. {"; ".join(f"{m.name}: {m.summary}" for m in METHODS.values())}',
        'criterion': "what is looked at: posteriors, the tokens that a detector reads, or a detector's loss (default: "
        'posterior; of a detector or a network without a head tokens)',
        'draws': f'backward passes per image{read_by("draws")}',
        'near_share': f'share of each dim around the cut that is scored exactly{read_by("near_share")}',
        'per_class': 'images of every class in the proxy set',
        'images': "plain folder of images to use instead of the config's data",
        'size': "HEIGHTxWIDTH of the images of the proxy set (default: as in the config's test)",
        'num_images': 'size of the proxy set when it comes from --images; of a detector always',
    },
    'planning': {
        'attention': 'cut channels of heads, or directions of what they compute (default: channels; of a detector or a '
        'network without a head lowrank)',
        'embed': 'cut channels of the embedding, or directions of the residual stream (rotate: DeiT classifiers)',
        'head_policy': 'narrow every head (within), keep whole heads (select), or mix heads like the authors (regroup)',
        'tie_qkv': 'one index set for q, k and v',
        'round_to': 'widths chosen by a budget are multiples of it; for q, k and v in each head; auto: what kernels of '
        f'the device like ({", ".join(f"{width} on {device}" for device, width in KERNEL_WIDTHS.items())})',
        'min_share': 'smallest width that a budget may choose, as a share of the dense width',
        'non_uniform': 'a budget gives each block its own widths, by score for cost',
        'window_size': "side in tokens of a DeiT detector's windows, for budgets in MACs; 0 = global",
    },
    'result': {
        'compensate': 're-solve the layers after slicing',
        'ridge': 'regularisation strength of the compensation (default: chosen for each layer)',
        'heal': 'minutes in which a pruned detector follows the dense one on unlabelled pictures',
        'eval_images': "largest number of held-out images for evaluation, a detector's first ones; 0 = no evaluation",
    },
    'running': {
        'seed': 'seed of the proxy set and of random parts of the method',
        'batch_size': 'images per batch',
        'amp': f'lower precision of the passes{read_by("amp")}; the report says how far the ranks agree with float32',
        'max_rows': f'images x candidates at once{read_by("max_rows")}; limits memory',
        'memory': "GiB of a GPU's memory for activations while layers are re-solved; the others wait on the host "
        '(default: half of what is free)',
        'workers': 'threads that read pictures',
    },
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the dense classifier (mmpretrain) or detector (mmdet)')
    parser.add_argument('checkpoint', help='its weights, in any known layout')
    parser.add_argument('--work-dir', type=Path, required=True, help='folder for scores, plan and the pruned network')
    parser.add_argument('--overwrite', action='store_true', help="replace another goal's result in that folder")
    goal = parser.add_argument_group('goal (one of them)').add_mutually_exclusive_group()
    goal.add_argument('--target', help='architecture: a stock name or an arch.json')
    goal.add_argument(
        '--widths', nargs='+', action=OptionsAction, help='fields of arch.json to change, e.g. embed_dims="[192]"'
    )
    goal.add_argument('--budget', help='macs=50%%@800x1333, macs=1.2G@224x224, params=3.7M or params=40%%')
    goal.add_argument('--plan', help='a plan.json to use')
    groups = {title: parser.add_argument_group(title) for title in SETTINGS}
    groups['scoring'].add_argument('--scores', help='a scores.pt to use instead of scoring')
    for title, settings in SETTINGS.items():
        for name, text in settings.items():
            add_setting(groups[title], name, text)
    groups['planning'].add_argument('--dry-run', action='store_true', help='print widths and costs; slice nothing')
    running = groups['running']
    running.add_argument(
        '--device',
        choices=('cpu', 'cuda'),
        help="device (default: the config's, else cuda if there is a GPU); with a launcher, one GPU per process",
    )
    running.add_argument(
        '--launcher', choices=('none', *VARIABLES), default='none', help='launcher of the processes for scoring'
    )
    running.add_argument('--threads', type=int, help="CPU threads of each process (default: torch's setting)")
    running.add_argument('--cfg-options', nargs='+', action=OptionsAction, help='override settings of the config')
    return parser.parse_args()


def detector_default(name: str) -> str:
    if name not in FOR_DETECTORS:
        return ''
    value = {True: 'on', None: 'all'}.get(FOR_DETECTORS[name], FOR_DETECTORS[name])
    return f'; for a detector {value}'


def whole_or_auto(text: str) -> int | str:
    if text != 'auto' and not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r}: must be a whole number, or auto')
    return text if text == 'auto' else int(text)


def add_setting(group: argparse._ArgumentGroup, name: str, text: str) -> None:
    default, options = getattr(DEFAULTS, name), {}
    if name == 'round_to':
        options['type'] = whole_or_auto
        text = f'{text} (default: {default}{detector_default(name)})'
    elif isinstance(default, bool):
        options['action'] = argparse.BooleanOptionalAction  # a config may set it
        text = f'{text} (default: {"on" if default else "off"}{detector_default(name)})'
    elif name in ('ridge', 'memory'):
        options['type'] = float
    elif default is not None:
        options['type'] = type(default)
        text = f'{text} (default: {default}{detector_default(name)})'
    if name in CHOICES:
        options['choices'] = CHOICES[name]
    group.add_argument(f'--{name.replace("_", "-")}', default=argparse.SUPPRESS, help=text, **options)


def main() -> None:
    args = parse_args()
    # after parsing: they import torch and OpenMMLab, which takes seconds
    import torch

    from upvit_mm.runner import leave_processes
    from upvit_mm.workflow.processes import join_crew
    from upvit_mm.workflow.prune import PruneJob
    from upvit_mm.workflow.prune_goal import goal_and_settings

    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    wanted = args.device or (cfg.get('prune') or {}).get('device') or default_device()
    check_device(wanted)
    crew, device = join_crew(args.launcher, wanted)
    if crew.rank:
        logging.getLogger('upvit_mm').setLevel(logging.WARNING)
    goal, settings = goal_and_settings(cfg, vars(args) | {'device': device})
    job = PruneJob(cfg, args.checkpoint, goal, args.work_dir, settings, args.scores, crew)
    try:
        if args.dry_run:
            show_target(job)
        else:
            if not args.overwrite:
                job.check_free()
            show_outcome(job, args.work_dir)
    finally:
        leave_processes()  # after an error too, so that the others notice it at once


def show_target(job: PruneJob) -> None:
    from upvit_mm.pruning import PrunePlan
    from upvit_mm.workflow.prune_report import cost_rows, width_rows

    if (target := job.target()) is not None:
        console = Console()
        if not isinstance(job.goal, PrunePlan):
            console.print(job.scoring.text(), highlight=False)
        console.print(table_of('widths', *width_rows(job.source, target)))
        console.print(table_of('costs', *cost_rows(job.costs(target))))


def show_outcome(job: PruneJob, work_dir: Path) -> None:
    from upvit_mm.workflow.prune_report import cost_rows

    if (outcome := job.run(command=command_line())) is None:
        return
    console = Console()
    console.print(table_of('costs', *cost_rows(job.costs(outcome.plan.target_arch))))
    for line in (*job.subject.lines(outcome.held_out), *job.subject.next_steps(work_dir)):
        console.print(line, highlight=False, soft_wrap=True)


if __name__ == '__main__':
    with one_line_errors():
        main()
