import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from small_pipelines import SENTENCES, tokenizer

from hidistill.metrics.clip import CLIP, MEAN, STD, ClipScore
from hidistill.types import FeatureSpace, Gallery, Samples
from hidistill.weights import WeightsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel

    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {
        "vocab_size": 64,
        "max_position_embeddings": 12,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    vision = small | {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(path)
    tokenizer(12).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def space(folder):
    return CLIP(folder, batch_size=3)


def test_it_is_the_librarys_own_cosine(folder, space):
    from transformers import CLIPModel

    assert isinstance(space, FeatureSpace)
    assert space.name.startswith("clip-16-patch8-16px-")
    images = torch.rand(4, 3, 16, 16)
    normal = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    tokens = tokenizer(12)(list(SENTENCES), padding=True, truncation=True, max_length=12, return_tensors="pt")
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        found = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=normal)
    cosines = found.logits_per_image / model.logit_scale.exp()
    pictures, texts = space(images), space.prompts(SENTENCES)
    torch.testing.assert_close(pictures @ texts.T, cosines, rtol=1e-4, atol=1e-5)
    gallery = Gallery(images, torch.zeros(4, dtype=torch.long))
    score = ClipScore(space, texts)(Samples(gallery, Gallery(images[:0], gallery.labels[:0])))
    expected = 100 * cosines.diagonal().clamp_min(0).mean().item()
    assert score == {f"clip_score/{space.name}": pytest.approx(expected, rel=1e-4)}


def test_wide_pictures_are_cropped_and_a_picture_alone_is_the_same(space):
    wide = torch.rand(2, 3, 16, 40)
    torch.testing.assert_close(space(wide), space(wide[..., 12:28]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(space(wide[1:]), space(wide)[1:], rtol=1e-4, atol=1e-5)
    assert torch.allclose(space(torch.rand(1, 1, 9, 30)).norm(dim=1), torch.ones(1))


def test_a_part_of_the_pictures_keeps_its_prompts(space):
    pictures, texts = (F.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
    gallery = Gallery(torch.zeros(6, 3, 0, 0), torch.zeros(6, dtype=torch.long))
    gallery.memory["features", space] = pictures
    index = torch.tensor([1, 4])
    found = ClipScore(space, texts)(Samples(gallery.rows(index), gallery, None, index))
    expected = 100 * (pictures * texts).sum(1)[index].clamp_min(0).mean().item()
    assert found[f"clip_score/{space.name}"] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="6 pictures for 5 prompts"):
        ClipScore(space, texts[:5])(Samples(gallery, gallery))


def test_another_network_or_none_is_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config.json; give the folder of a CLIPModel"):
        CLIP(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((folder / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "siglip"}))
    with pytest.raises(WeightsError, match="of type 'siglip'"):
        CLIP(other)
    (other / "config.json").write_text(json.dumps(config))
    (other / "model.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="holds no whole CLIPModel"):
        CLIP(other)
