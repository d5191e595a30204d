"""From the arguments of tools/evidence.py to a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from upvit_mm.cli import default_device
from upvit_mm.evidence.classifier_steps import ClassifierPlan
from upvit_mm.evidence.detector_steps import DetectorPlan
from upvit_mm.evidence.page import write_page
from upvit_mm.evidence.report import write_report
from upvit_mm.evidence.results import StudyFound
from upvit_mm.evidence.run import Run, minutes_of
from upvit_mm.evidence.steps import Plan, Step
from upvit_mm.evidence.studies import RANKS, STUDIES, Study
from upvit_mm.launch import command_line
from upvit_mm.stopwatch import device_name


def plans_of(studies: Sequence[Study], seeds: Sequence[int], scale: str, root: Path) -> list[Plan]:
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
    others, queue = _by_name(everything, RANKS), list(steps.values())
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


@dataclass(frozen=True)
class Options:
    """How an experiment is run.

    Attributes:
        work_dir: gets a folder for each scale.
        scale: see ``studies.SCALES``.
        seeds: one dense network each.
        ranks: see ``studies.Row``.
        jobs: steps at a time.
        threads: threads of each step; None = torch's, shared by the jobs.
        time_limit: in minutes; None = no limit.
        report_only: run nothing.
    """

    work_dir: Path
    scale: str
    seeds: Sequence[int]
    ranks: Sequence[int]
    jobs: int = 1
    threads: int | None = None
    time_limit: float | None = None
    report_only: bool = False


def conduct(studies: Sequence[Study], options: Options) -> dict[str, str]:
    """Run an experiment, and report all that is finished in its work dir; see ``tools/evidence.py``.

    Returns:
        The state of each step, see ``Run.go``.
    """
    root = (options.work_dir / options.scale).absolute()
    plans = plans_of(studies, options.seeds, options.scale, root)
    threads = options.threads or max(torch.get_num_threads() // options.jobs, 1)
    run = Run(steps_of(plans, sorted(options.ranks)), root, options.scale, options.jobs, threads)
    state = {} if options.report_only else run.go(options.time_limit)
    report(options.scale, root)
    return state


def report(scale: str, root: Path) -> None:
    """Write report and page of all that is finished in a work dir, whichever run it is from, and print where."""
    by_study = finished_plans(scale, root)
    about: dict[str, Any] = {
        'scale': scale,
        'machine': device_name(default_device()),
        'command': command_line(),
        'minutes': minutes_of(plan.folder for plans in by_study for plan in plans),
    }
    about['outdated'] = outdated([plan for plans in by_study for plan in plans], root)
    found = [StudyFound.of(plans) for plans in by_study]
    print(write_report(root, found, about))
    if found:
        print(write_page(root, found, [plan for plans in by_study for plan in plans], about))


def outdated(plans: Sequence[Plan], root: Path) -> list[str]:
    """Names of steps whose results are there, but not from the commands, configs and version of now."""
    if not plans:
        return []
    run = Run(steps_of(plans, RANKS), root, plans[0].scale, 1, 1)
    return [name for name, step in run.steps.items() if step.output.is_file() and not run.is_done(step)]


def finished_plans(scale: str, root: Path) -> list[list[Plan]]:
    """For each study with figures in a work dir, a plan for each seed that was begun."""
    found = []
    for study in STUDIES:
        folders = (root / study.data / study.family).glob('seed*')
        seeds = sorted(int(folder.name[4:]) for folder in folders if folder.name[4:].isdecimal())
        plans = plans_of([study], seeds, scale, root)
        if plans and StudyFound.of(plans).metrics:
            found.append(plans)
    return found
