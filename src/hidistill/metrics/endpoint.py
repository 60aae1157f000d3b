"""How far from the teacher's own picture for the same noise?"""

from collections.abc import Mapping
from dataclasses import dataclass

from hidistill.types import Samples


@dataclass(frozen=True)
class EndDistance:
    """Root of the mean squared pixel difference, over all images, to the ends of the teacher's own trajectories.

    `sqrt(mean |generated_i - end_i|^2)` with pixels in [0, 1], both from the same noise and class: 0 is the teacher's
    own map from noise to data, whatever its quality.
    """

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return "end_distance"

    def __call__(self, samples: Samples) -> Mapping[str, float]:
        """The number `end_distance`; nothing where there are no ends.

        Raises:
            ValueError: if the ends are not those of the generated images.
        """
        if samples.ends is None:
            return {}
        images, ends = samples.generated.images, samples.ends
        if images.shape != ends.shape:
            raise ValueError(
                f"images of shape {tuple(images.shape)} and ends of shape {tuple(ends.shape)}; pair them up"
            )
        return {"end_distance": (images.double() - ends.double()).square().mean().sqrt().item()}
