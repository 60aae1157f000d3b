"""Whether what is shown in a clip moves as it should, and stays what it is.

Both look at one bright thing before a black ground. Where it is in a frame, its centroid says; what it looks like, the
frame says once the centroid is brought to the middle.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from hidistill.types import Labels

Clips = Float[Tensor, "n frames c h w"]
"""Pixels in [0, 1]."""
Centroids = Float64[Tensor, "n frames 2"]
"""Row and column in pixels, whole at the middle of a pixel."""
Places = Int[Tensor, "m _frames"]
"""Ways along an axis: a place for each frame."""


def centroids(clips: Clips) -> Centroids:
    """Mean place of a frame's squared intensity; that of a black frame is the middle of the canvas.

    Of the squares, for faint noise all over a canvas would draw a mean of intensities to its middle.
    """
    weight = clips.double().square().sum(2) + 1e-9
    total = weight.sum((2, 3))
    height, width = (torch.arange(size, dtype=torch.float64) for size in weight.shape[2:])
    return torch.stack([(weight.sum(3) * height).sum(2), (weight.sum(2) * width).sum(2)], 2) / total[..., None]


def motion_error(clips: Clips, ways: Places) -> float:
    """How far a clip's centroid is from the closest motion that is allowed, in pixels.

    Root of the mean squared distance, over clips and frames, from the closest pair of a way down and a way across of
    which at least one moves; the pair may be shifted as a whole. 0 is a motion that real clips may have; a clip that
    stands still is not one. It asks where something is, not whether anything can be seen: fog has a centroid near the
    middle, so read it beside `appearance_change`.

    Args:
        clips: what is judged.
        ways: all allowed motions along an axis.
    """
    where = centroids(clips)
    if ways.shape[1] != where.shape[1]:
        raise ValueError(
            f"ways of {ways.shape[1]} frames came for clips of {where.shape[1]}; give ways of the clips' frames"
        )
    still = (ways == ways[:, :1]).all(1)
    if still.all():
        raise ValueError("no way among the allowed ones moves; give those of real clips")
    way = ways.double()
    way = way - way.mean(1, keepdim=True)
    path = where - where.mean(1, keepdim=True)
    errors = (path[:, None] - way[None, :, :, None]).square().mean(2)
    closest, moving = errors.amin(1), errors[:, ~still].amin(1)
    both = torch.minimum(moving[:, 0] + closest[:, 1], closest[:, 0] + moving[:, 1])
    return both.mean().sqrt().item()


def appearance_change(clips: Clips, *, real: Float[Tensor, "b _frames c h w"], labels: Labels) -> float:
    """How much what is shown changes from one frame to the next, its motion undone.

    Root of the mean squared difference of consecutive centered frames, over that of first frames of two real clips of
    one class. 0 is a rigid thing; 1 is another thing of its class in every frame.

    Args:
        clips: what is judged.
        real: real clips.
        labels: of the real clips.

    Raises:
        ValueError: if no class has two different real clips.
    """
    frames = centered(clips)
    change = (frames[:, 1:] - frames[:, :-1]).square().mean()
    first = centered(real[:, :1])[:, 0]
    classes = [first[labels == label] for label in labels.unique()]
    # Two independent draws differ by twice the variance in the mean of their squared difference.
    spreads = [2 * members.var(0).mean() for members in classes if len(members) > 1]
    between = torch.stack(spreads).mean() if spreads else torch.zeros(())
    if between == 0:
        raise ValueError("no class has two different real clips, which one unit of change is; give more of them")
    return (change / between).sqrt().item()


def centered(clips: Clips) -> Float64[Tensor, "n frames c h w"]:
    """Each frame shifted so that its centroid is in the middle of the canvas.

    Interpolation between pixels is linear; what comes in is black.
    """
    n, frames, _, height, width = clips.shape
    middle = torch.tensor([(height - 1) / 2, (width - 1) / 2], dtype=torch.float64)
    shift = (centroids(clips) - middle).flatten(0, 1) * 2 / torch.tensor([height, width])
    theta = torch.eye(2, 3, dtype=torch.float64).repeat(n * frames, 1, 1)
    theta[:, :, 2] = shift.flip(1)
    flat = clips.double().flatten(0, 1)
    grid = F.affine_grid(theta, list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, align_corners=False).unflatten(0, (n, frames))
