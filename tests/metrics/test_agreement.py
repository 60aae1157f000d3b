import pytest
import torch

from hidistill.metrics.agreement import ClassAgreement
from hidistill.types import Gallery, Samples


def brightest(images):
    """Logits are the pixels: the class is the brightest one."""
    return images.flatten(1)


def gallery(shown, asked):
    images = torch.nn.functional.one_hot(torch.tensor(shown), 3).float()
    return Gallery(images[:, None, None], torch.tensor(asked))


@pytest.mark.parametrize("batch_size", [1, 2, 500])
def test_counts_the_images_that_show_what_was_asked(batch_size):
    samples = Samples(gallery([0, 1, 2, 0], [0, 1, 1, 0]), gallery([0, 1, 2, 2, 2], [0, 0, 0, 2, 1]))
    found = ClassAgreement(brightest, batch_size)(samples)
    assert found == {"agreement": pytest.approx(3 / 4), "agreement_real": pytest.approx(2 / 5)}


def test_leaves_no_graph_behind():
    layer = torch.nn.Linear(3, 3)
    answers = []

    def classify(images):
        answers.append(layer(images.flatten(1)))
        return answers[-1]

    same = gallery([0, 1], [0, 1])
    ClassAgreement(classify)(Samples(same, same))
    assert not any(answer.requires_grad for answer in answers)
