"""Where a plain ViT attends globally when the other blocks attend within windows (arXiv 2203.16527, sec. 3)."""


def four_global_blocks(depth: int) -> tuple[int, ...]:
    """The last block of each of four equal runs of blocks; all blocks when there are fewer than five."""
    return tuple(sorted({(k + 1) * depth // 4 - 1 for k in range(4)} - {-1}))
