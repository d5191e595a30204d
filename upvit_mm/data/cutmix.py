"""CutMix as the authors of UP-ViTs have it.

A config names it by its module, ``type='upvit_mm.data.cutmix.UPCutMix'``: mmpretrain's registry of batch augmentations
has no parent that it would share with ours.
"""

from mmpretrain.models.utils.batch_augments import CutMix


class UPCutMix(CutMix):
    """``CutMix`` in which every image keeps the larger share of itself.

    The share is ``max(l, 1 - l)`` with ``l`` of Beta(alpha, alpha) (``utils/mixup_utils.py`` of the authors): at least
    a half, and for ``alpha=0.5`` 0.82 on average, where mmpretrain's own ``l`` gives 0.5. The patch is clipped at the
    border, and labels follow what it covers.

    Args:
        alpha: of the distribution, above 0.
    """

    def __init__(self, alpha: float):
        super().__init__(alpha)

    def cutmix_bbox_and_lam(self, img_shape: tuple[int, int], lam: float, count: int | None = None) -> tuple:
        """Corners of the patch, and the share of the image itself, for a share that was drawn."""
        return super().cutmix_bbox_and_lam(img_shape, max(lam, 1 - lam), count)
