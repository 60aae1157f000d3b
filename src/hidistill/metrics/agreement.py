"""Does a picture show the class that was asked for?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from hidistill.types import Gallery, Images, Logits, Samples


@dataclass(frozen=True)
class ClassAgreement:
    """Share of images whose most likely class, for a classifier trained on real images, is the one asked for.

    Beside it the same share for the held-out real images and their labels: classes overlap, and more than that is
    images that are more typical than real ones.

    Args:
        classifier: images to logits; in evaluation mode.
        batch_size: images per pass.
    """

    classifier: Callable[[Images], Logits]
    batch_size: int = 500

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return "agreement"

    def __call__(self, samples: Samples) -> Mapping[str, float]:
        """The numbers `agreement` and `agreement_real`."""
        real = samples.real.once(("agreement", self.classifier), lambda: self.share(samples.real))
        return {"agreement": self.share(samples.generated), "agreement_real": real}

    @torch.no_grad()
    def share(self, gallery: Gallery) -> float:
        """Share of the images whose predicted class is their label."""
        batches = [self.classifier(images).argmax(1) for images in gallery.images.split(self.batch_size)]
        return (torch.cat(batches) == gallery.labels).double().mean().item()
