"""Where the discriminator looks on pictures that were just drawn (AWD, arXiv 2511.08930)."""

import torch
from PIL import Image

from hidistill.path import interpolate
from hidistill.recipes.judging import square_maps
from hidistill.report.pictures import attention, quantized
from hidistill.sampling import all_rows
from hidistill.seeds import fold_in, normal
from hidistill.types import Cond, Images
from hidistill.view.cast import Match


@torch.no_grad()
def looked_at(match: Match, images: Images, *, cond: Cond, t: float, seed: int) -> tuple[Image.Image, float]:
    """Attention over images, a row per image, a column per tapped layer; and the weight of the brightest token.

    Args:
        match: whose discriminator looks, through its teacher's features.
        images: pixels in [0, 1].
        cond: their conditions.
        t: the noise level at which it judges.
        seed: of that noise.

    Raises:
        ValueError: if there is no discriminator with attention, or its tokens are no square.
    """
    if match.head is None:
        raise ValueError(f"no attention can be shown: {match.headless}")
    x_0 = match.space.codec.encode(images)
    noise = normal([fold_in(seed, "look", i) for i in range(len(images))], x_0.shape[1:]).to(x_0)
    times = all_rows(t, x_0)
    features = match.teacher.features(interpolate(x_0, noise, times), t=times, cond=cond)
    maps = square_maps([layer.cpu() for layer in match.head.attention(features, t=times, cond=cond)])
    if maps is None:
        raise ValueError("no attention can be shown: the tokens of the judged layers are no square of one size")
    return attention(quantized(images), maps.float().numpy())
