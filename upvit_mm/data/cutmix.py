"""CutMix as in the code of the authors of UP-ViTs.

A config gives its full module path, ``type='upvit_mm.data.cutmix.UPCutMix'``, because mmpretrain's registry of batch
augmentations has no parent in common with ours.
"""

from mmpretrain.models.utils.batch_augments import CutMix


class UPCutMix(CutMix):
    """``CutMix`` in which every image keeps the larger share of itself.

    The share is ``max(l, 1 - l)`` with ``l`` from Beta(alpha, alpha) (``utils/mixup_utils.py`` of the authors). It is
    at least a half, and for ``alpha=0.5`` 0.82 on average; mmpretrain's ``l`` gives 0.5. The patch is clipped at the
    border, and labels follow what it covers.

    Args:
        alpha: parameter of the distribution, above 0.
    """

    def __init__(self, alpha: float):
        super().__init__(alpha)

    def cutmix_bbox_and_lam(self, img_shape: tuple[int, int], lam: float, count: int | None = None) -> tuple:
        """Corners of the patch, and the share of the image itself, for a share that was drawn."""
        return super().cutmix_bbox_and_lam(img_shape, max(lam, 1 - lam), count)
