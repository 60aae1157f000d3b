"""The patch of a DiT whose image size is not known beforehand."""

LARGEST_PATCH_COUNT = 100
"""Tokens per image that a CPU is asked to carry unless a patch is given."""
LARGEST_PATCH = 16
"""Side of a patch in pixels, unless one is given: a token of a DiT has few numbers for the pixels of a larger one."""


def smallest_patch(size: int) -> int:
    """The smallest patch that divides the image and leaves a CPU few enough tokens."""
    return next(p for p in range(1, size + 1) if size % p == 0 and (size // p) ** 2 <= LARGEST_PATCH_COUNT)


def choose_patch(size: int) -> int:
    """The smallest patch that divides the image and leaves few tokens, unless it would be too coarse to draw with.

    Raises:
        ValueError: if it would be too coarse; names sizes and patches that are not.
    """
    patch = smallest_patch(size)
    if patch > LARGEST_PATCH:
        near = max(side for side in range(1, size) if smallest_patch(side) <= LARGEST_PATCH)
        finest = max(p for p in range(1, LARGEST_PATCH + 1) if size % p == 0)
        raise ValueError(
            f"size={size}: at most {LARGEST_PATCH_COUNT} tokens an image would need patches of {patch} pixels, and "
            f"over {LARGEST_PATCH} they are too coarse to be chosen. Give a smaller size, such as {near}, or choose "
            f"patch={finest} yourself, which makes {(size // finest) ** 2:,} tokens an image"
        )
    return patch
