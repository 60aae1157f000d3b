"""What guidance adds to distribution matching, as a term of its own (arXiv 2511.22677)."""

from dataclasses import dataclass

import torch

from hidistill.guidance import Guided
from hidistill.path import mean_per_sample, per_row, velocity_to_data
from hidistill.types import Loss, Noised, Teacher


@dataclass(frozen=True)
class Augmentation:
    """The augmentation by guidance: samples move from what the teacher makes of no condition to what of theirs.

    With a guided real score DMD's direction is a sum, `(x0_fake - x0_cond) - (scale - 1) (x0_cond - x0_null)`, the
    matching of distributions and this (arXiv 2511.22677). Apart, they may be drawn at times of their own: two
    `OnNoised` with the unguided teacher, one with `DMD`, one with this. The gradient is divided by
    `mean|x_0 - x0_cond|`, as DMD's is there.

    Args:
        teacher: the unguided teacher, the bridge's own, whose null condition is asked beside the bridge's pass.
        scale: of the guidance; 1 is none.
        floor: smallest divisor.

    Raises:
        ValueError: if the scale is less than 1 or not finite, or the teacher is guided; when called, if the bridge
            passed another field than this teacher, a guided one say, whose guidance would count twice.
    """

    teacher: Teacher
    scale: float
    floor: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse what is no augmentation."""
        if not 1.0 <= self.scale < float("inf"):
            raise ValueError(f"scale={self.scale}: an augmentation needs a finite scale >= 1; 1 adds nothing")
        if isinstance(self.teacher, Guided):
            raise ValueError(
                f"Augmentation got a teacher guided at scale {self.teacher.scale}; it takes the unguided one, for the "
                "guidance is what it adds: give Augmentation and its OnNoised the teacher within"
            )

    def __call__(self, noised: Noised) -> Loss:
        """The loss per sample, and the mean size of its gradient."""
        if not any(field is self.teacher for field, _ in noised.known):
            passed = ", ".join(type(field).__name__ for field, _ in noised.known) or "nothing"
            raise ValueError(
                f"Augmentation stands on a bridge that passed {passed}, not its own unguided teacher; with a guided "
                "one the guidance would count twice: give OnNoised the teacher that Augmentation has"
            )
        with torch.no_grad():
            x_t, x_0 = noised.x_t.detach(), noised.x_0.detach().float()
            null = self.teacher.velocity(x_t, t=noised.t, cond=self.teacher.null(noised.cond))
            plain = velocity_to_data(noised.velocity(self.teacher), x_t, noised.t).float()
            without = velocity_to_data(null, x_t, noised.t).float()
            divisor = mean_per_sample((x_0 - plain).abs()).clamp_min(self.floor)
            gradient = (self.scale - 1) * (without - plain) / per_row(divisor, plain)
        value = 0.5 * mean_per_sample((noised.x_0.float() - (x_0 - gradient)).square())
        return Loss(value, {"augmentation_gradient": gradient.square().mean().sqrt()})
