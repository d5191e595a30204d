"""Losses that compare a student with its teacher (shape legend: ``layers/__init__.py``)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upvit_mm.arch import ArchSpec
from upvit_mm.pruning import PrunePlan
from upvit_mm.registry import MODELS

AnyPath = str | os.PathLike


class DistillLoss(nn.Module):
    """One term of the distillation loss; ``forward`` makes a scalar from the same tensor of student and teacher.

    Attributes:
        compares: which tensor: ``'logits'`` ``(B, classes)``, ``'features'`` ``(B, C)`` before the head, or
            ``'tokens'`` ``(B, P+N, C)`` after the last norm.

    Args:
        loss_weight: factor on the term.

    Raises:
        ValueError: ``loss_weight`` not above 0.
    """

    compares: str

    def __init__(self, loss_weight: float):
        super().__init__()
        if not loss_weight > 0:
            raise ValueError(f'loss_weight = {loss_weight}: must be above 0; to switch the term off, leave it out.')
        self.loss_weight = loss_weight

    def connect(self, student: ArchSpec, teacher: ArchSpec) -> None:
        """Prepare for a pair of networks; the base class accepts every pair.

        Raises:
            ValueError: the two cannot be compared.
        """


@MODELS.register_module()
class SoftTargetKL(DistillLoss):
    """KL(teacher || student) of the class posteriors, mean over the batch, times the squared temperature.

    Args:
        loss_weight: 6.4 is the authors' weight 0.2 on a sum over the 32 images of a GPU (``main_distill.py``); as a
            mean it does not depend on the batch size.
        temperature: divides the logits of both; 1 in the authors' code.

    Raises:
        ValueError: a setting not above 0.
    """

    compares = 'logits'

    def __init__(self, loss_weight: float = 6.4, temperature: float = 1.0):
        super().__init__(loss_weight)
        if not temperature > 0:
            raise ValueError(f'temperature = {temperature}: must be above 0.')
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        log_q, log_p = (F.log_softmax(_full(x) / self.temperature, dim=1) for x in (student, teacher))
        divergence = F.kl_div(log_q, log_p, reduction='batchmean', log_target=True)
        return self.loss_weight * self.temperature**2 * divergence


@MODELS.register_module()
class FeatureMSE(DistillLoss):
    """Mean squared error on the features before the head: DeiT's class token, PVTv2's mean over tokens.

    A narrower student is compared with the channels of the teacher that it was sliced from (``plan``), or through a
    learned linear map from its own features to the teacher's (``projector``). Equal widths need neither.

    Args:
        loss_weight: 20 in the paper, for PVTv2.
        plan: path of the ``plan.json`` that made the student from the teacher; several in order when it was pruned
            in steps.
        projector: learn the map. It trains with the student and is saved as ``distill_losses.*``; nothing else uses it.

    Raises:
        ValueError: ``loss_weight`` not above 0, or both ``plan`` and ``projector``.
    """

    compares = 'features'
    projector: nn.Linear | None
    kept: Tensor | None

    def __init__(
        self, loss_weight: float = 20.0, plan: AnyPath | Sequence[AnyPath] | None = None, projector: bool = False
    ):
        super().__init__(loss_weight)
        if plan and projector:
            raise ValueError(f'plan = {plan!r} and projector = True: a plan says which channels to compare; drop one.')
        self.plans = [plan] if isinstance(plan, (str, os.PathLike)) else list(plan or ())
        self.with_projector = projector
        self.projector = None
        self.register_buffer('kept', None, persistent=False)

    def connect(self, student: ArchSpec, teacher: ArchSpec) -> None:
        """Make the widths of the last embedding match.

        Raises:
            FileNotFoundError: a plan does not exist.
            ValueError: widths differ without plan or projector, or the plans do not lead from teacher to student.
        """
        widths = student.embed_dims[-1], teacher.embed_dims[-1]
        if self.with_projector:
            with torch.random.fork_rng(devices=[]):  # the student starts with the same weights as without a teacher
                self.projector = nn.Linear(*widths)
        elif self.plans:
            self.kept = kept_embedding(self.plans, student, teacher)
        elif widths[0] != widths[1]:
            raise ValueError(
                f'{type(self).__name__}: the last embedding has {widths[0]} channels in the student and {widths[1]} in '
                "the teacher; give plan='.../plan.json' if it was sliced from this teacher, else projector=True."
            )

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.projector is not None:
            student = self.projector(student)
        if self.kept is not None:
            teacher = teacher.index_select(-1, self.kept)
        return self.loss_weight * F.mse_loss(_full(student), _full(teacher))


@MODELS.register_module()
class TokenMSE(FeatureMSE):
    """Mean squared error on every token after the last norm: DeiT's class and patch tokens, PVTv2's whole last map.

    Arguments as in ``FeatureMSE``.

    Note:
        Ours, not the paper's; it compares the tokens that a detector will use.
    """

    compares = 'tokens'

    def connect(self, student: ArchSpec, teacher: ArchSpec) -> None:
        grids = [(arch.family, arch.strides[-1]) for arch in (student, teacher)]
        if grids[0] != grids[1]:
            raise ValueError(
                'TokenMSE: the tokens of the student ({} at stride {}) and of the teacher ({} at stride {}) do not '
                'match; use FeatureMSE.'.format(*grids[0], *grids[1])
            )
        super().connect(student, teacher)


def kept_embedding(plans: Sequence[AnyPath], student: ArchSpec, teacher: ArchSpec) -> Tensor:
    """Channels of the teacher's last embedding that the student has, in order: int64 ``(C of the student,)``.

    Args:
        plans: paths of ``plan.json``; each one prunes the result of the one before.
        student: the architecture that the last plan must give.
        teacher: the architecture that the first plan must prune.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, of directions instead of channels, or they do not lead from teacher to student.
    """
    kept, arch, whose = torch.arange(teacher.embed_dims[-1]), teacher, 'the teacher'
    for path in plans:
        plan = PrunePlan.load(path)
        _check_same(f'plan {str(path)!r} prunes (source_arch)', plan.source_arch, whose, arch)
        name = f'stages.{arch.num_stages - 1}.embed'
        if name in plan.turned:
            raise ValueError(
                f'plan {str(path)!r} keeps directions of a rotated embedding, not channels of it: take projector=True, '
                'or distil the posteriors (SoftTargetKL).'
            )
        kept = kept[plan.kept[name]]
        arch, whose = plan.target_arch, f'what {str(path)!r} gives'
    _check_same(f'plan {str(plans[-1])!r} gives (target_arch)', arch, 'the student', student)
    return kept


def _check_same(planned_as: str, planned: ArchSpec, whose: str, actual: ArchSpec) -> None:
    fields = [f.name for f in dataclasses.fields(ArchSpec) if f.name != 'name']
    pairs = [(f, getattr(planned, f), getattr(actual, f)) for f in fields]
    differences = [f'{f} = {p}, {whose} has {a}' for f, p, a in pairs if p != a]
    if differences:
        more = f'; {len(differences) - 2} more field(s) differ' if len(differences) > 2 else ''
        raise ValueError(
            f'{planned_as} {"; ".join(differences[:2])}{more}. Give the plan that made this student from this teacher, '
            'or projector=True instead of a plan.'
        )


def _full(x: Tensor) -> Tensor:
    """At least fp32: half precision loses the posteriors' tails and small differences."""
    return x.float() if x.element_size() < 4 else x
