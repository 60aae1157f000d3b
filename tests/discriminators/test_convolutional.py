import numpy as np
import pytest
import torch
from torch import nn

from hidistill.discriminators.convolutional import Convolutional

AT = {"t": torch.full((3,), 0.5), "cond": torch.zeros(3, dtype=torch.long)}


@pytest.mark.parametrize(("grid", "rows", "columns"), [(None, 6, 6), ((4, 8), 4, 8)])
def test_the_head_in_numpy(grid, rows, columns):
    """Convolution, group normalization, slope 0.2 below zero, a verdict at each place, their mean."""
    head = Convolutional((5,), width=16, grid=grid).double()
    for weight in head.parameters():
        nn.init.normal_(weight)
    tokens = torch.randn(3, rows * columns, 5, dtype=torch.float64)
    (inner,) = head.heads
    kernel, bias = inner.convolution.weight.detach().numpy(), inner.convolution.bias.detach().numpy()
    image = np.pad(tokens.numpy().reshape(3, rows, columns, 5), ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.empty((3, 16, rows // 2, columns // 2))
    for row in range(rows // 2):
        for column in range(columns // 2):
            window = image[:, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
            y[:, :, row, column] = np.einsum("bhwc,ochw->bo", window, kernel) + bias
    assert inner.norm.num_groups == 2
    groups = y.reshape(3, 2, -1)
    mean, variance = groups.mean(2, keepdims=True), groups.var(2, keepdims=True)
    y = ((groups - mean) / np.sqrt(variance + inner.norm.eps)).reshape(y.shape)
    y = y * inner.norm.weight.detach().numpy()[:, None, None] + inner.norm.bias.detach().numpy()[:, None, None]
    y = np.where(y > 0, y, 0.2 * y)
    verdict = np.einsum("bohw,o->bhw", y, inner.verdict.weight.detach().numpy().ravel()) + inner.verdict.bias.item()
    np.testing.assert_allclose(head([tokens], **AT).detach()[:, 0], verdict.mean((1, 2)), rtol=1e-9)


@pytest.mark.parametrize(("width", "groups"), [(8, 1), (12, 1), (16, 2), (64, 8), (96, 8), (512, 32)])
def test_groups_have_eight_channels_or_more(width, groups):
    norm = Convolutional((4,), width=width).heads[0].norm
    assert norm.num_groups == groups


@pytest.mark.parametrize(
    ("tokens", "grid", "words"),
    [(12, None, "fill no square"), (12, (3, 5), "grid of 3 x 5"), (1, None, "2 x 2 or more"), (7, (1, 7), "2 x 2")],
)
def test_tokens_that_fill_no_grid_are_refused(tokens, grid, words):
    with pytest.raises(ValueError, match=words):
        Convolutional((4,), grid=grid)([torch.randn(3, tokens, 4)], **AT)
