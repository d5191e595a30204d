"""The classifier that a pruning job starts from."""

from __future__ import annotations

from functools import cached_property

from mmengine.config import Config

from upvit_mm.checkpoints import load_classifier, local_file
from upvit_mm.files import sha256_of
from upvit_mm.pruning.posterior import PosteriorNet
from upvit_mm.workflow.posteriors import build_net
from upvit_mm.workflow.prune_settings import source_of


class DenseClassifier:
    """A config's network with the weights of a checkpoint; built when it is first used.

    Args:
        cfg: its mmpretrain config.
        checkpoint: its weights, in any layout that ``upvit_mm.checkpoints`` knows.
        device: where it runs.

    Attributes:
        arch: its architecture.
        state: its tensors, ``backbone.*`` and ``head.fc.*``.
        num_classes: outputs of its head; 0 = it has none.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: the config is not of a classifier of this package, or the checkpoint does not fit it.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str = 'cpu'):
        self.checkpoint, self.device, self.arch = checkpoint, device, source_of(cfg)
        self._file = local_file(checkpoint)
        self.state = load_classifier(self._file, arch=self.arch)
        self.num_classes = len(self.state.get('head.fc.bias', ()))

    @cached_property
    def net(self) -> PosteriorNet:
        """The network, from images to posteriors."""
        return build_net(self.arch, self.state, self.device)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the checkpoint's file."""
        return sha256_of(self._file)
