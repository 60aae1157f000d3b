"""Whether a picture shows what was asked for, judged by a linear map from image features to prompt embeddings.

No network that was trained on pictures and texts together is needed: a ridge regression from features of real training
pictures to the embeddings of their captions learns what goes with what, and a picture agrees with its prompt if its
own mapped features are nearer to that prompt than to others. The numbers compare rows of one table. They are no CLIP
scores, and depend on the feature space, the embeddings and the set of prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hidistill.types import FeatureSpace, Samples

Embeddings = Float[Tensor, "_n e"]
"""One row per caption."""
Rows = Float[Tensor, "_n d"]
"""One row of features per picture."""
PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Ridge penalties that are tried, in units of the features' mean variance."""
RANKS = (1, 5, 10)


@dataclass(frozen=True, eq=False)
class Ridge:
    """A linear map from features to embeddings.

    Args:
        mean: of the features.
        weight: (d, e).
        offset: mean of the embeddings.
    """

    mean: Float[Tensor, " d"]
    weight: Float[Tensor, "d e"]
    offset: Float[Tensor, " e"]

    @classmethod
    def fit(cls, features: Rows, embeddings: Embeddings, penalty: float) -> "Ridge":
        """Least squares in float64, with `penalty` times the features' mean variance on the weights."""
        x, y = features.double(), embeddings.double()
        mean, offset = x.mean(0), y.mean(0)
        x, y = x - mean, y - offset
        ridge = penalty * x.square().sum() / x.shape[1]
        weight = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
        return cls(mean, weight, offset)

    def __call__(self, features: Rows) -> Embeddings:
        """Embeddings of pictures, without their mean."""
        return (features.double() - self.mean) @ self.weight


def ranks(predicted: Embeddings, prompts: Embeddings, own: Sequence[int]) -> Float[Tensor, " _n"]:
    """How many other prompts are as near, by cosine, to each prediction as its own; 0 is the best."""
    similarity = F.normalize(predicted, dim=1) @ F.normalize(prompts, dim=1).T
    mine = similarity.gather(1, torch.tensor(own)[:, None])
    # What is not less counts, ties and numbers that are none, too: a prediction of nothing is not a good one.
    return (~(similarity < mine)).sum(1).double() - 1


def choose(features: Rows, embeddings: Embeddings, valid: Rows, own: Embeddings) -> float:
    """The penalty that ranks the validation pictures' own captions best."""
    prompts, index = distinct(own)

    def badness(penalty: float) -> float:
        ridge = Ridge.fit(features, embeddings, penalty)
        return float((1 + ranks(ridge(valid), prompts - ridge.offset, index)).log().mean())

    return min(PENALTIES, key=badness)


def distinct(embeddings: Embeddings) -> tuple[Embeddings, list[int]]:
    """The embeddings without repetition, and for each row the index of its own among them."""
    kept, index = torch.unique(embeddings.double(), dim=0, return_inverse=True)
    return kept, index.tolist()


@dataclass(frozen=True, eq=False)
class PromptAgreement:
    """Share of pictures whose own prompt is among the nearest 1, 5 and 10 of all that were asked for.

    Args:
        space: features of pictures.
        ridge: fitted on real training pictures and their captions.
        prompts: embeddings of what was asked for, one row per picture.
        penalty: of the ridge, for the record.
    """

    space: FeatureSpace
    ridge: Ridge
    prompts: Embeddings
    penalty: float

    @property
    def name(self) -> str:
        """See `Metric.name`."""
        return f"prompt agreement in {self.space.name}, ridge {self.penalty:g}"

    def __call__(self, samples: Samples) -> Mapping[str, float]:
        """The shares, and beside them those of the held-out real pictures; absent for pictures that nobody asked for.

        Raises:
            ValueError: if there are more pictures than prompts, or too few prompts to tell apart.
        """
        if samples.ends is None:
            return {}
        n = len(samples.generated.labels)
        index = torch.arange(n) if samples.index is None else samples.index
        kept, own = distinct(self.prompts[index[index < len(self.prompts)]])
        if n > len(self.prompts) or len(kept) < 2:
            raise ValueError(
                f"{n} pictures for {len(self.prompts)} prompts, {len(kept)} of them different; give one per picture, "
                "and at least 2 different ones"
            )
        centered = kept - self.ridge.offset
        key = ("prompt ranks", self, tuple(index.tolist()))
        shown = samples.real.features(self.space)
        real = samples.real.once(key, lambda: ranks(self.ridge(shown[index]), centered, own))
        drawn = ranks(self.ridge(samples.generated.features(self.space)), centered, own)
        shares = {"prompt_recall": drawn, "prompt_recall_real": real}
        return {
            f"{name}@{k}/{self.space.name}": float((position < k).double().mean())
            for name, position in shares.items()
            for k in RANKS
            if k < len(kept)
        }
