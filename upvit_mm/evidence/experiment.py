"""From the arguments of tools/evidence.py to a report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch

from upvit_mm.cli import default_device
from upvit_mm.evidence.classifier_steps import ClassifierPlan
from upvit_mm.evidence.detector_steps import DetectorPlan
from upvit_mm.evidence.page import write_page
from upvit_mm.evidence.report import write_report
from upvit_mm.evidence.results import StudyFound
from upvit_mm.evidence.run import Run
from upvit_mm.evidence.steps import Plan, Step
from upvit_mm.evidence.studies import STUDIES, Study
from upvit_mm.launch import command_line
from upvit_mm.stopwatch import device_name


def plans_of(studies: Sequence[Study], seeds: Sequence[int], scale: str, root) -> list[Plan]:
    """A plan for each study and seed."""
    return [
        (DetectorPlan if study.is_detector else ClassifierPlan)(study, seed, scale, root)
        for seed in seeds
        for study in studies
    ]


def steps_of(plans: Sequence[Plan], ranks: Sequence[int]) -> list[Step]:
    """All steps of the plans, and the steps of other studies that these need, each once."""
    steps, first = _by_name(plans, ranks), plans[0]
    everything = plans_of(STUDIES, sorted({plan.seed for plan in plans}), first.scale, first.root)
    others, queue = _by_name(everything, sorted({0, *ranks})), list(steps.values())
    while queue:
        for need in queue.pop().needs:
            if need not in steps:
                steps[need] = others[need]
                queue.append(others[need])
    return list(steps.values())


def _by_name(plans: Sequence[Plan], ranks: Sequence[int]) -> dict[str, Step]:
    return {
        step.name: replace(step, config=plan.config, home=plan.folder)
        for plan in plans
        for rank in ranks
        for step in plan.steps(rank)
    }


def conduct(studies: Sequence[Study], args: argparse.Namespace) -> dict[str, str]:
    """Run an experiment and write its report; see ``tools/evidence.py``.

    Returns:
        The state of each step, see ``Run.go``.
    """
    root = (args.work_dir / args.scale).absolute()
    plans = plans_of(studies, args.seeds, args.scale, root)
    threads = args.threads or max(torch.get_num_threads() // args.jobs, 1)
    run = Run(steps_of(plans, sorted(args.ranks)), root, args.scale, args.jobs, threads)
    state = {} if args.report_only else run.go(args.time_limit)
    by_study = {study.name: [plan for plan in plans if plan.study is study] for study in studies}
    about = {
        'scale': args.scale,
        'machine': device_name(default_device()),
        'command': command_line(),
        'minutes': run.minutes(),
    }
    found = [study for own in by_study.values() if (study := StudyFound.of(own)).metrics]
    print(write_report(root, found, about))
    if found:
        print(write_page(root, found, plans, about))
    return state
