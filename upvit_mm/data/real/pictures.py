"""Pictures of a download: decoded completely, so that a damaged one is found before a training."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

EIGHT_BITS = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr')  # Pillow cuts off brighter values of other modes


def read_picture(path: Path) -> Image.Image:
    """A decoded picture, rotated by its EXIF orientation as OpenMMLab does when it loads it.

    Raises:
        ValueError: it cannot be decoded, or has more than 8 bits in a channel.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            upright = ImageOps.exif_transpose(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise ValueError(f'picture {str(path)!r} cannot be read ({error}); download or write it again.') from error
    if upright.mode not in EIGHT_BITS:
        raise ValueError(f'picture {str(path)!r} has mode {upright.mode}: must have 8 bits in a channel; convert it.')
    return upright
