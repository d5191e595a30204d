"""What a student learns from its teacher. Importing this file takes no torch, so that a typo is answered at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from upvit_mm.arch import ArchSpec

TERMS = {'SoftTargetKL': 'soft', 'FeatureMSE': 'feature', 'TokenMSE': 'token'}  # losses, by their names in a Lesson


@dataclass(frozen=True)
class Lesson:
    """What a student learns from its teacher: weights of the loss terms; 0 leaves a term out.

    Attributes:
        soft: KL of the class posteriors (``SoftTargetKL``).
        feature: squared error on the features before the head (``FeatureMSE``).
        token: squared error on every token (``TokenMSE``).
        temperature: temperature of the KL.

    Raises:
        ValueError: a negative weight, or none above 0.
    """

    soft: float = 6.4
    feature: float = 0.0
    token: float = 0.0
    temperature: float = 1.0

    def __post_init__(self):
        weights = {name: getattr(self, name) for name in ('soft', 'feature', 'token')}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f'weights of distillation = {weights}: none may be negative, and one must be above 0.')

    @classmethod
    def of(cls, distill: Mapping[str, Mapping]) -> Lesson:
        """The lesson of a config's ``distill``.

        Raises:
            ValueError: a loss that is not ours, or the same loss twice.
        """
        from upvit_mm.registry import MODELS  # torch and OpenMMLab

        lesson = {'soft': 0.0}
        losses = [MODELS.build(dict(config)) for config in distill.values()]
        kinds = [TERMS.get(type(loss).__name__) for loss in losses]
        if None in kinds or len(set(kinds)) < len(kinds):
            raise ValueError(f'distill = {dict(distill)!r}: each of {", ".join(TERMS)} at most once, and no others.')
        for kind, loss in zip(kinds, losses):
            lesson[kind] = loss.loss_weight
            if kind == 'soft':
                lesson['temperature'] = loss.temperature
        return cls(**lesson)

    def terms(self, student: ArchSpec, teacher: ArchSpec, plans: Sequence[Path] = ()) -> dict[str, dict]:
        """The ``distill`` of a ``DistillClassifier``.

        Args:
            student: its architecture.
            teacher: its architecture.
            plans: plans that made the student from the teacher, in order; empty for a student that was not pruned from
                the teacher: a learned map then brings different widths together.
        """
        pairing: dict = {}
        if plans:
            pairing['plan'] = [str(path) for path in plans]
        elif student.embed_dims[-1] != teacher.embed_dims[-1]:
            pairing['projector'] = True
        terms = {
            'soft': dict(type='upvit_mm.SoftTargetKL', loss_weight=self.soft, temperature=self.temperature),
            'feature': dict(type='upvit_mm.FeatureMSE', loss_weight=self.feature, **pairing),
            'token': dict(type='upvit_mm.TokenMSE', loss_weight=self.token, **pairing),
        }
        return {name: term for name, term in terms.items() if term['loss_weight']}
