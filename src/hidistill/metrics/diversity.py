"""How much the pictures of one class differ from one another."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hidistill.types import Gallery, Images, Samples

BLOCK = 1024


def mean_pairwise_distance(images: Images) -> float:
    """Mean Euclidean distance between the pixels of two different images of a set, in float64.

    Raises:
        ValueError: if there is no pair.
    """
    n = len(images)
    if n < 2:
        raise ValueError(f"{n} image of a class came; a pair needs 2: draw more images, or leave the class out")
    x = images.double().flatten(1)
    x = x - x.mean(0)
    return sum(torch.cdist(block, x).sum().item() for block in x.split(BLOCK)) / (n * (n - 1))


def by_class(gallery: Gallery) -> dict[int, float]:
    """The mean pairwise distance within each class."""
    return {
        label: mean_pairwise_distance(gallery.images[gallery.labels == label])
        for label in gallery.labels.unique().tolist()
    }


@dataclass(frozen=True)
class IntraClassDiversity:
    """Mean pairwise pixel distance within a class over that of real images of this class; mean over the classes.

    Every class that was drawn counts the same, however many images it has. Far below 1, a class has collapsed to few
    images; blur lowers it too.
    """

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return "diversity"

    def __call__(self, samples: Samples) -> Mapping[str, float]:
        """The number `diversity`."""
        real, generated = samples.real.once("diversity", lambda: by_class(samples.real)), by_class(samples.generated)
        lost = [label for label in generated if real.get(label, 0.0) == 0.0]
        if lost:
            raise ValueError(f"classes {lost} have no two different real images; compare with a set that has them")
        return {"diversity": sum(value / real[label] for label, value in generated.items()) / len(generated)}
