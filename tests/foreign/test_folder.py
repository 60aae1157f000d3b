"""Folders of diffusers: whole or refused, with a message that names what is wrong."""

import json
import shutil

import pytest
import small_pipelines as small
import torch
from safetensors.torch import load_file, save_file

from hidistill.foreign.folder import Folder, FolderError, read_tensors
from hidistill.recipes.teachers import load
from hidistill.weights import WeightsError

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return small.saved(small.dit(), tmp_path_factory.mktemp("whole") / "teacher")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "teacher")


def rewritten(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_network_is_what_diffusers_reads(folder):
    from diffusers import DiTTransformer2DModel

    own = DiTTransformer2DModel.from_pretrained(folder / "transformer").eval()
    found = Folder(folder).network("transformer")
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    x, t, labels = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.tensor([0, 1])
    answers = [net(x, timestep=t, class_labels=labels).sample for net in (own, found)]
    assert torch.equal(*answers)


def test_weights_in_several_files_are_one_network(folder):
    """As diffusers saves networks of more than ten gigabytes."""
    from diffusers import DiTTransformer2DModel

    own = DiTTransformer2DModel.from_pretrained(folder / "transformer")
    shutil.rmtree(folder / "transformer")
    own.save_pretrained(folder / "transformer", max_shard_size="20KB")
    files = Folder(folder).files("transformer")
    assert len(files) > 1
    found = Folder(folder).network("transformer").state_dict()
    assert all(torch.equal(value, found[key]) for key, value in own.state_dict().items())
    files[1].unlink()
    with pytest.raises(FolderError, match=rf"lacks {files[1].name}, which .* names; copy them again"):
        Folder(folder).files("transformer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("proj_out_1.bias"), r"it misses proj_out_1\.bias"),
        (lambda state: state.update(more=torch.zeros(1)), r"it has the unexpected more"),
        (lambda state: state.update({"proj_out_1.bias": torch.zeros(3)}), r"proj_out_1\.bias is \(3,\) there and"),
    ],
)
def test_weights_that_do_not_fit_name_their_keys(folder, change, message):
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)
    with pytest.raises(WeightsError, match=message):
        load(folder)


def test_cut_off_weights_are_named(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"diffusion_pytorch_model\.safetensors is not a whole safetensors file"):
        load(folder)


def test_a_pickle_is_refused_unless_asked_for_and_then_gives_tensors_alone(folder):
    path = folder / WEIGHTS
    state = load_file(path)
    path.unlink()
    torch.save(state, path.with_suffix(".bin"))
    with pytest.raises(FolderError, match=r"is a pickle.*--allow-pickle"):
        load(folder)
    read = load(folder, allow_pickle=True).network.net.state_dict()
    assert all(torch.equal(read[key], value) for key, value in state.items())

    class Harmful:
        def __reduce__(self):
            return (print, ("this ran",))

    torch.save({"weight": Harmful()}, path.with_suffix(".bin"))
    with pytest.raises(WeightsError, match="cannot be read as tensors alone"):
        load(folder, allow_pickle=True)


def test_a_family_that_is_not_known_is_named_with_those_that_are(folder):
    rewritten(folder / "transformer" / "config.json", _class_name="HunyuanDiT2DModel")
    with pytest.raises(FolderError, match=r"holds a HunyuanDiT2DModel, whose family is not known; supported are DiT"):
        load(folder)


def test_a_scheduler_that_ends_in_nothing_but_noise_is_refused_where_noise_is_predicted(folder):
    rewritten(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True, prediction_type="epsilon")
    with pytest.raises(ValueError, match=r"ends at zero signal .* and the network predicts the noise"):
        load(folder)


def test_other_folders_are_told_apart(folder, tmp_path):
    with pytest.raises(FolderError, match="is no folder"):
        Folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FolderError, match=r"neither model_index\.json .* it holds nothing"):
        Folder(tmp_path / "empty")
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    content.pop("transformer")
    index.write_text(json.dumps(content))
    with pytest.raises(FolderError, match="it has no transformer and no unet"):
        load(folder)


def test_missing_weights_and_variants_are_told(folder):
    with pytest.raises(FolderError, match=r"has no weights .*\.fp16\.safetensors; there is diffusion_pytorch_model"):
        load(folder, variant="fp16")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FolderError, match="has no scheduler: no configuration in"):
        load(folder)


def test_the_only_variant_is_found(folder):
    before = load(folder).network.net.state_dict()
    for path in list(folder.glob("*/*.safetensors")):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    assert Folder(folder).variant == "fp16"
    after = load(folder).network.net.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    other = next(folder.glob("transformer/*.safetensors"))
    other.rename(other.with_name(other.name.replace(".fp16", ".bf16")))
    assert Folder(folder).variant is None
    with pytest.raises(FolderError, match=r"vae has no weights .* there is diffusion_pytorch_model\.fp16"):
        load(folder)


def test_a_configuration_that_is_no_json_is_named(folder):
    (folder / "transformer" / "config.json").write_text("{")
    with pytest.raises(FolderError, match=r"config\.json is no JSON"):
        load(folder)


def test_digests_tell_weights_apart(whole, folder):
    same = Folder(whole).digest("transformer")
    assert Folder(folder).digest("transformer") == same
    state = load_file(folder / WEIGHTS)
    state["proj_out_1.bias"] += 1e-3
    save_file(state, folder / WEIGHTS)
    assert Folder(folder).digest("transformer") != same


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WeightsError, match="there is no file"):
        read_tensors(tmp_path / "none.safetensors")


def test_an_embedded_guidance_scale_is_for_families_that_embed_one(folder):
    with pytest.raises(ValueError, match="for a dit, whose networks embed none"):
        load(folder, embedded=3.0)
