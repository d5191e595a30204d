"""The frozen teacher of a distillation, and the tensors of a classifier that the losses compare."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from mmpretrain.models import ImageClassifier
from torch import Tensor, nn

from upvit_mm.checkpoints import check_state, load_backbone, load_classifier
from upvit_mm.models.backbones.base import UPBackbone
from upvit_mm.registry import backbone_types

PREPROCESSING = ('mean', 'std', 'to_rgb', 'num_classes')  # num_classes does not change an image


def observe(
    classifier: ImageClassifier, images: Tensor, wanted: Collection[str]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Run a classifier and record the tensors that losses compare.

    Args:
        classifier: a classifier with one of our backbones.
        images: ``(B, 3, h, w)``, preprocessed.
        wanted: of ``'logits'``, ``'features'``, ``'tokens'``, see ``DistillLoss``.

    Returns:
        The neck's output, for the head, and the wanted tensors by name.
    """
    tokens: list[Tensor] = []
    norm = classifier.backbone.stages[-1].norm  # no output of a DeiT backbone has both the class token and the patches
    with norm.register_forward_hook(lambda module, args, out: tokens.append(out)):
        feats = classifier.extract_feat(images)
    seen = {}
    if 'logits' in wanted:
        seen['logits'] = classifier.head(feats)
    if 'features' in wanted:
        seen['features'] = classifier.head.pre_logits(feats) if classifier.with_head else feats[-1]
    if 'tokens' in wanted:
        assert tokens, 'the backbone stopped before its last norm'
        seen['tokens'] = tokens[-1]
    return feats, seen


class Teacher(nn.Module):
    """A trained classifier that does not train: no gradients, evaluation mode.

    Args:
        backbone: its config.
        checkpoint: its weights in any layout that ``upvit_mm.checkpoints`` knows.
        weights: ``'ema'`` or ``'raw'`` where the checkpoint has both; None takes those that its maker evaluates.
        neck: its config, or None.
        head: config of a linear head; None when no loss compares logits.
        data_preprocessor: ``mean``, ``std`` and ``to_rgb`` that it was trained with, if they differ from the student's;
            None for the same.
        student_preprocessor: the student's preprocessor; the teacher gets its output.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: a backbone that is not ours, a checkpoint that does not fit, or other settings of preprocessing.
    """

    def __init__(
        self,
        backbone: Mapping,
        checkpoint: str,
        neck: Mapping | None = None,
        head: Mapping | None = None,
        data_preprocessor: Mapping | None = None,
        student_preprocessor: nn.Module | None = None,
        weights: str | None = None,
    ):
        super().__init__()
        other = sorted(set(data_preprocessor or {}) - set(PREPROCESSING))
        if other:
            raise ValueError(
                f'teacher.data_preprocessor has {", ".join(other)}: the teacher gets the batch of the student, so only '
                f'{", ".join(PREPROCESSING[:3])} can be its own.'
            )
        with torch.random.fork_rng(devices=[]):  # the student starts from the same weights with and without a teacher
            self.classifier = ImageClassifier(backbone, neck, head, data_preprocessor=dict(data_preprocessor or {}))
        check_backbone('teacher.backbone', self.classifier.backbone)
        self.checkpoint, self.weights = checkpoint, weights
        self._load()
        self.flip_channels = False
        self.register_buffer('scale', None)
        self.register_buffer('shift', None)
        if data_preprocessor is not None:
            self._adapt_to(student_preprocessor)
        self.requires_grad_(False)
        self.eval()

    def _load(self) -> None:
        source, expected = dict(weights=self.weights, arch=self.classifier.backbone.arch), self.classifier.state_dict()
        if not self.classifier.with_head:
            state = {f'backbone.{k}': v for k, v in load_backbone(self.checkpoint, **source).items()}
        else:
            state = load_classifier(self.checkpoint, **source)
            self._check_head(state)
        name = self.classifier.backbone.arch.name or 'custom'
        check_state(state, expected, f'the teacher (arch={name}, checkpoint={self.checkpoint})')
        self.classifier.load_state_dict(state)

    def _check_head(self, state: Mapping[str, Tensor]) -> None:
        if 'head.fc.bias' not in state:
            raise ValueError(
                f'teacher checkpoint {self.checkpoint!r} has no linear head; drop teacher.head and the KL.'
            )
        if (classes := len(state['head.fc.bias'])) != self.classifier.head.num_classes:
            raise ValueError(
                f'teacher checkpoint {self.checkpoint!r} has {classes} classes: teacher.head.num_classes = '
                f'{self.classifier.head.num_classes}; teacher and student need the same classes.'
            )

    def _adapt_to(self, student_preprocessor: nn.Module | None) -> None:
        """From the student's pixels to the teacher's: flip channels, scale, shift."""
        mean, std, rgb = _colours(student_preprocessor)
        own_mean, own_std, own_rgb = _colours(self.classifier.data_preprocessor)
        self.flip_channels = rgb != own_rgb
        if self.flip_channels:
            mean, std = mean.flip(0), std.flip(0)
        if not (torch.equal(mean, own_mean) and torch.equal(std, own_std)):
            self.scale, self.shift = std / own_std, (mean - own_mean) / own_std

    @torch.no_grad()  # not inference_mode: autograd cannot keep its tensors for the student's backward pass
    def forward(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """The wanted tensors (see ``observe``) of a batch ``(B, 3, h, w)`` that is preprocessed for the student."""
        if self.flip_channels:
            images = images.flip(1)
        if self.scale is not None:
            images = images * self.scale + self.shift
        return observe(self.classifier, images, wanted)[1]


def check_backbone(field: str, backbone: nn.Module) -> None:
    """Refuse a backbone that has no arch to compare.

    Raises:
        ValueError: not one of ours.
    """
    if not isinstance(backbone, UPBackbone):
        raise ValueError(f'{field}.type = {type(backbone).__name__}: must be one of {backbone_types()}.')


def _colours(preprocessor: nn.Module | None) -> tuple[Tensor, Tensor, bool]:
    """Mean and std ``(3, 1, 1)`` in the channel order after the preprocessing, and whether it flips BGR."""
    mean = getattr(preprocessor, 'mean', None)
    if mean is None:
        mean, std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    else:
        std = preprocessor.std
    return mean, std, bool(getattr(preprocessor, 'to_rgb', False))
