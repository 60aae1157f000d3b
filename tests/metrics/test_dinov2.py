import json
import shutil

import pytest
import torch

from hidistill.metrics.dinov2 import MEAN, STD, DINOv2
from hidistill.types import FeatureSpace
from hidistill.weights import WeightsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model

    path = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(path)
    return path


def test_it_is_the_class_token_of_normalized_pictures(folder):
    from transformers import Dinov2Model

    space = DINOv2(folder, side=28, batch_size=2)
    assert isinstance(space, FeatureSpace)
    assert space.name.startswith("dinov2-24-")
    assert space.name.endswith("-28px")
    images = torch.rand(3, 3, 28, 28)
    normal = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(folder).eval()(pixel_values=normal).last_hidden_state[:, 0]
    torch.testing.assert_close(space(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(space(images[:, :1]), space(images[:, :1].repeat(1, 3, 1, 1)))
    assert space(torch.rand(1, 1, 9, 9)).shape == (1, 24)


def test_another_network_or_none_is_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config.json; give the folder of a Dinov2Model"):
        DINOv2(tmp_path)
    with pytest.raises(ValueError, match="multiple of the network's patch of 14"):
        DINOv2(folder, side=30)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((folder / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(WeightsError, match="holds a network of type 'vit'"):
        DINOv2(other)
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(WeightsError, match=r"lacks weights of a Dinov2Model: .*layer\.2"):
        DINOv2(other)
    (other / "config.json").write_text(json.dumps(config))
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(WeightsError, match="holds no whole Dinov2Model"):
        DINOv2(other)
