"""Image towers from elsewhere: small random models, saved as timm, open_clip and transformers save theirs."""

import hashlib
import json
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import huggingface_hub
import numpy as np
import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants, errors
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

import hibiost as hb
from hibiost import inputs
from hibiost.errors import ModelError, WeightsUnavailableError
from hibiost.model import FeatureEncoder, HibioModel, ImageEncoder, feature_encoder, image_encoder, load
from hibiost.model.encoders import as_encoder, entries
from hibiost.model.weights import read_weights

VIT = {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2, "init_values": 1e-2}
CLIP_TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
CLIPS = {
    "vit": {"vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}},
    "quick": {
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    },
    "resnet": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}},
    "coca": {
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
            "attentional_pool": True,
            "attn_pooler_heads": 2,
            "output_tokens": True,
        },
        "multimodal_cfg": {**CLIP_TEXT, "attn_pooler_heads": 2},
    },
    "siglip": {
        "custom_text": True,
        "vision_cfg": {"image_size": 176, "timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "none"},
    },
}
WIDTH = {"siglip": 512}


@pytest.fixture(autouse=True)
def _own_random_state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Puts files into a cache of the hub, laid out as its client does."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(repository, folder, revision="main"):
        cache = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        commit = hashlib.sha1(revision.encode()).hexdigest()
        (cache / "refs").mkdir(parents=True, exist_ok=True)
        (cache / "refs" / revision).write_text(commit)
        (cache / "snapshots").mkdir(exist_ok=True)
        folder.rename(cache / "snapshots" / commit)
        return cache / "snapshots" / commit

    return put


@pytest.fixture
def clip(tmp_path, monkeypatch):
    """Registers a small CLIP with open_clip and makes one with random weights."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))

    def make(kind):
        path = tmp_path / f"small-{kind}.json"
        path.write_text(json.dumps({"embed_dim": WIDTH.get(kind, 24), "text_cfg": CLIP_TEXT, **CLIPS[kind]}))
        open_clip.add_model_config(path)
        return open_clip.create_model(f"small-{kind}").eval()

    return make


def vit(**options):
    return timm.create_model("vit_tiny_patch16_224", **VIT, **options).eval()


def saved(model, path):
    path.parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def started(encoder, vocabulary):
    model = HibioModel(encoder.config, vocabulary)
    return model.eval(), encoder.start(model)


@torch.inference_mode()
def check_features(features, expected, size):
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    wanted = expected(pixels)
    assert (wanted[0] - wanted[1]).abs().max() > 0
    torch.testing.assert_close(features(pixels), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


# -- timm ------------------------------------------------------------------------------------------------------------


def test_timm_by_its_tag_from_the_cache_of_the_hub(hub, tmp_path, vocabulary, caplog):
    source = timm.create_model("resnet10t.c3_in1k").eval()
    path = saved(source, tmp_path / "files" / "model.safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    hub("timm/resnet10t.c3_in1k", path.parent)
    with caplog.at_level("INFO", logger="hibiost"):
        encoder = as_encoder("timm:resnet10t.c3_in1k")
        model, record = started(encoder, vocabulary)
    assert record == {
        "name": "timm:resnet10t.c3_in1k",
        "source": "huggingface.co/timm/resnet10t.c3_in1k",
        "weights": "model.safetensors",
        "sha256": digest,
        "licence": "apache-2.0",
    }
    assert "licence: apache-2.0" in caplog.text
    source.reset_classifier(0)
    check_features(model.visual.trunk, source, 64)


@pytest.mark.parametrize(
    ("name", "size"), [("vit_tiny_patch16_224", 224), ("mobilenetv3_small_050", 224), ("convnext_atto", 224)]
)
def test_timm_from_a_local_file(name, size, tmp_path, vocabulary):
    source = timm.create_model(name).eval()
    path = saved(source, tmp_path / "w.safetensors")
    encoder = image_encoder(f"timm:{name}", path, gene_tower="ResNet-10")
    expected = timm.data.resolve_data_config({}, model=source)
    assert encoder.config.mean == expected["mean"]
    assert encoder.config.std == expected["std"]
    assert encoder.config.image_size == encoder.config.patch_size == size
    assert encoder.config.embed_dim == 128
    assert encoder.licence == "unknown; that of the local file"
    model, _ = started(encoder, vocabulary)
    source.reset_classifier(0)
    check_features(model.visual.trunk, source, size)
    assert model.embed_images(np.zeros((2, size, size, 3), np.uint8)).shape == (2, 128)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("place", ["folder", "hub", "revision"])
def test_a_model_that_timm_saved_for_the_hub(place, safe, hub, tmp_path, vocabulary):
    """Arguments of the architecture, layer scale among them, and other statistics are in timm's own config.json."""
    source = vit(num_classes=7)
    source.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "license": "cc-by-4.0"}
    folder = tmp_path / "small"
    save_for_hf(source, folder, model_args=VIT, safe_serialization=safe)
    if place == "folder":
        name = f"local-dir:{folder}"
    else:
        name = "hf-hub:someone/small" + ("@v2" if place == "revision" else "")
        folder = hub("someone/small", folder, "v2" if place == "revision" else "main")
    encoder = image_encoder(name)
    assert encoder.weights.suffix == (".safetensors" if safe else ".bin")
    assert (encoder.config.mean, encoder.config.std, encoder.config.image_size) == (
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
        64,
    )
    assert encoder.licence == "cc-by-4.0"
    model, _ = started(encoder, vocabulary)
    reference = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    check_features(model.visual.trunk, reference, 64)


def test_weights_that_timm_has_to_rename(tmp_path, vocabulary):
    """DINOv2's own files: register tokens under another name than timm's, and a mask token that timm leaves out."""
    source = vit(num_classes=0, reg_tokens=2, no_embed_class=True)
    tensors = source.state_dict()
    tensors["register_tokens"] = tensors.pop("reg_token")
    tensors["mask_token"] = torch.zeros(1, 24)
    tensors["pos_embed"] = torch.cat([torch.zeros(1, 1, 24), tensors["pos_embed"]], dim=1)
    tensors["cls_token"] = tensors["cls_token"].clone()
    folder = tmp_path / "dino"
    save_for_hf(source, folder, model_args={**VIT, "reg_tokens": 2, "no_embed_class": True})
    torch.save({"model": tensors}, folder / "dino.pth")
    model, _ = started(image_encoder(f"local-dir:{folder}", folder / "dino.pth"), vocabulary)
    check_features(model.visual.trunk, source, 64)


def test_the_trunk_of_a_larger_model_is_found(tmp_path, vocabulary):
    """As in CONCH: the trunk stands in a CLIP with poolings of its own."""
    source = timm.create_model("resnet10t").eval()
    tensors = {f"visual.trunk.{name}": value for name, value in source.state_dict().items()}
    tensors |= {"visual.proj_contrast": torch.zeros(4, 4), "text.proj": torch.zeros(4, 4)}
    torch.save(tensors, tmp_path / "whole.bin")
    model, _ = started(image_encoder("timm:resnet10t", tmp_path / "whole.bin"), vocabulary)
    source.reset_classifier(0)
    check_features(model.visual.trunk, source, 64)


# -- open_clip -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLIPS)
def test_the_image_tower_of_a_clip(kind, clip, tmp_path, vocabulary):
    """A checkpoint as open_clip's training leaves it, with numbers of numpy: of the whole CLIP, a part is taken."""
    source = clip(kind)
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"epoch": 3, "loss": np.float64(0.5), "state_dict": state}, tmp_path / "epoch_3.pt")
    encoder = image_encoder(f"open_clip:small-{kind}", tmp_path / "epoch_3.pt")
    assert encoder.config.embed_dim == WIDTH.get(kind, 24)
    assert encoder.config.mean == (0.48145466, 0.4578275, 0.40821073)
    model, _ = started(encoder, vocabulary)
    check_features(model.visual, partial(source.encode_image, normalize=False), encoder.config.image_size)


def test_quick_gelu_makes_a_difference(clip, tmp_path, vocabulary):
    source = clip("quick")
    clip("vit")
    path = saved(source, tmp_path / "clip.safetensors")
    model, _ = started(image_encoder("open_clip:small-vit", path), vocabulary)
    with pytest.raises(AssertionError):
        check_features(model.visual, source.encode_image, 32)


def test_open_clip_by_its_tag_from_the_cache_of_the_hub(clip, hub, tmp_path, monkeypatch, vocabulary):
    source = clip("vit")
    tag = {"hf_hub": "someone/small-clip/", "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3), "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small-vit", {"made_here": tag})
    path = saved(source, tmp_path / "files" / "open_clip_model.safetensors")
    hub("someone/small-clip", path.parent)
    encoder = as_encoder("open_clip:small-vit/made_here")
    assert (encoder.config.mean, encoder.config.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert encoder.licence == "not told with the weights; see huggingface.co/someone/small-clip"
    model, record = started(encoder, vocabulary)
    assert record["source"] == "huggingface.co/someone/small-clip"
    reference = open_clip.create_model("small-vit", force_quick_gelu=True).eval()
    reference.load_state_dict(source.state_dict())
    check_features(model.visual, reference.encode_image, 32)
    with pytest.raises(ModelError, match=r"no weights 'small-vit/made_her'.*\['made_here'\].*Did you mean 'made_here'"):
        image_encoder("open_clip:small-vit/made_her")


def test_a_clip_that_open_clip_saved_for_the_hub(clip, hub, tmp_path, vocabulary):
    from open_clip.push_to_hf_hub import save_for_hf as save_clip

    source = clip("vit")
    open_clip.model.set_model_preprocess_cfg(source, {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)})
    folder = tmp_path / "clip"
    config = open_clip.get_model_config("small-vit")
    save_clip(source, Mock(), config, folder, safe_serialization=True)
    hub("someone/clip", folder)
    encoder = image_encoder("hf-hub:someone/clip")
    assert (encoder.config.mean, encoder.config.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    model, _ = started(encoder, vocabulary)
    check_features(model.visual, source.encode_image, 32)


def test_a_clip_of_transformers(clip, tmp_path, vocabulary):
    """PLIP's format: names and shapes as `transformers.CLIPModel` keeps them, written here by hand."""
    source = clip("vit")
    v, width = source.visual, 32
    state = {
        "logit_scale": torch.tensor(1.0),
        "text_model.final_layer_norm.weight": torch.ones(3),
        "visual_projection.weight": v.proj.T,
        "vision_model.embeddings.class_embedding": v.class_embedding,
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
        "vision_model.embeddings.patch_embedding.weight": v.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": v.positional_embedding,
    }
    for theirs, ours in (("pre_layrnorm", v.ln_pre), ("post_layernorm", v.ln_post)):
        state |= {f"vision_model.{theirs}.{name}": value for name, value in ours.named_parameters()}
    for number, block in enumerate(v.transformer.resblocks):
        layer = f"vision_model.encoder.layers.{number}"
        parts = {
            "layer_norm1": block.ln_1,
            "layer_norm2": block.ln_2,
            "mlp.fc1": block.mlp.c_fc,
            "mlp.fc2": block.mlp.c_proj,
            "self_attn.out_proj": block.attn.out_proj,
        }
        for name, part in parts.items():
            state |= {f"{layer}.{name}.{kind}": value for kind, value in part.named_parameters()}
        for at, part in enumerate("qkv"):
            rows = slice(at * width, (at + 1) * width)
            state[f"{layer}.self_attn.{part}_proj.weight"] = block.attn.in_proj_weight[rows]
            state[f"{layer}.self_attn.{part}_proj.bias"] = block.attn.in_proj_bias[rows]
    torch.save({name: tensor.detach().clone() for name, tensor in state.items()}, tmp_path / "pytorch_model.bin")
    model, _ = started(image_encoder("open_clip:small-vit", tmp_path), vocabulary)
    check_features(model.visual, source.encode_image, 32)


# -- what is known of pathology encoders -----------------------------------------------------------------------------

PUBLISHED = {  # millions of weights of the image tower, and its width, as model cards and papers give them
    "conch": (86, 768),
    "gigapath": (1135, 1536),
    "h-optimus-0": (1135, 1536),
    "omiclip": (307, 768),
    "plip": (88, 512),
    "uni": (303, 1024),
    "uni2-h": (681, 1536),
    "virchow": (631, 1280),
    "virchow2": (631, 1280),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_encoders_are_of_their_published_size(name, tmp_path, vocabulary, monkeypatch):
    monkeypatch.setattr(ImageEncoder, "check", lambda self: None)
    (tmp_path / "w.bin").touch()
    encoder = image_encoder(name, tmp_path / "w.bin")
    with torch.device("meta"):
        visual = HibioModel(encoder.config, vocabulary).visual
    millions, width = PUBLISHED[name]
    trunk = getattr(visual, "trunk", visual)
    n_weights = sum(parameter.numel() for parameter in trunk.parameters()) / 1e6
    assert n_weights == pytest.approx(millions, rel=0.01 if name != "omiclip" else 0.05)
    assert (trunk.num_features if trunk is not visual else encoder.config.embed_dim) == width
    side = encoder.config.image_size
    assert trunk(torch.zeros(1, 3, side, side, device="meta")).shape == (1, width)


def test_known_encoders_are_listed():
    listed = hb.model.encoders()
    assert set(listed) == set(PUBLISHED)
    assert listed["uni"] == {
        "hub": "MahmoodLab/UNI",
        "licence": "CC-BY-NC-ND-4.0",
        "gated": True,
        "image_size": 224,
        "mpp": 0.5,
    }


def test_a_known_encoder_by_its_name_on_the_hub(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(ImageEncoder, "check", lambda self: None)
    (tmp_path / "w.bin").touch()
    by_name = image_encoder("UNI", tmp_path / "w.bin")
    assert by_name == image_encoder("hf-hub:MahmoodLab/uni", tmp_path / "w.bin")
    assert by_name == image_encoder("hf_hub:MahmoodLab/UNI", tmp_path / "w.bin")
    assert by_name.config.vision_cfg["timm_args"]["init_values"] == 1e-5
    assert by_name.config.mpp == 0.5
    with caplog.at_level("INFO", logger="hibiost"):
        image_encoder("virchow", tmp_path / "w.bin")
    assert "of virchow, hibiost takes the class token alone" in caplog.text


# -- files that cannot be had ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "uni",
            r"MahmoodLab/UNI are not on this machine.*ask for access there, since it is gated.*hf download .*weights=.*"
            r"Licence: CC-BY-NC-ND-4\.0",
        ),
        ("plip", r"vinid/plip are not on this machine(?!.*gated).*'hf download vinid/plip pytorch_model\.bin'"),
        ("timm:resnet10t", r"timm/resnet10t\.c3_in1k are not on this machine.*weights="),
        ("hf-hub:someone/something", r"someone/something are not on this machine"),
    ],
)
def test_without_network_it_tells_how_to_bring_the_file(name, message, hub):
    for make in (image_encoder, feature_encoder):
        with pytest.raises(WeightsUnavailableError, match=message):
            make(name)


@pytest.mark.parametrize("error", [errors.GatedRepoError, errors.RepositoryNotFoundError])
def test_without_access_it_tells_how_to_get_it(error, hub, monkeypatch):
    def refuse(hub, *args, **options):
        raise error("refused", response=Mock(headers={}, status_code=403))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(
        WeightsUnavailableError, match=r"no access to huggingface\.co/MahmoodLab/UNI.*accept its terms.*HF_TOKEN"
    ):
        image_encoder("uni")


def test_what_is_on_the_hub_but_holds_no_weights(hub, monkeypatch):
    def absent(hub, *args, **options):
        raise errors.RemoteEntryNotFoundError("none", response=Mock(headers={}, status_code=404))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    with pytest.raises(ModelError, match=r"someone/empty has none of \['model\.safetensors'"):
        image_encoder("hf-hub:someone/empty")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet10", r"timm has no model 'resnet10'.*Did you mean .*'resnet10t'"),
        ("timm:resnet10t.c3_in2k", r"no weights 'resnet10t\.c3_in2k'; it has .*Did you mean 'resnet10t\.c3_in1k'"),
        ("open_clip:ViT-B16/openai", r"open_clip has no model 'ViT-B16'.*Did you mean 'ViT-B-16'"),
        ("open_clip:ViT-B-16", r"with a tag of \['openai'.*or a local file"),
        ("clip:ViT-B-16", r"no image encoder 'clip:ViT-B-16'; expected one of .*'timm:NAME'"),
        ("unni", r"no image encoder 'unni'.*Did you mean .*'uni'"),
        ("timm:", "no image encoder 'timm:'"),
        ("hf-hub:a/b/c", "'a/b/c' is no name on the hub"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ModelError, match=message):
        image_encoder(name)


def test_folders_and_files_that_are_not_there(tmp_path):
    with pytest.raises(ModelError, match=r"no weights at .*nowhere\.bin; expected a file or a folder"):
        image_encoder("uni", tmp_path / "nowhere.bin")
    with pytest.raises(ModelError, match=r"holds no weights; expected one of \['model\.safetensors'"):
        image_encoder("uni", tmp_path)
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=r"holds \['a\.pth', 'b\.pth'\].*Name the file"):
        image_encoder("uni", tmp_path)


@pytest.mark.parametrize("text", [None, '{"model_type": "clip"}', "[", "3"])
def test_folders_without_a_description(text, tmp_path):
    saved(torch.nn.Linear(2, 2), tmp_path / "model.safetensors")
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match="not in the layout of timm|no description of a model"):
        image_encoder(f"local-dir:{tmp_path}")


# -- files that are not trusted, and files that do not fit -----------------------------------------------------------


@pytest.mark.parametrize("name", ["weights.pt", "weights.bin", "weights.pth"])
def test_pickled_code_is_refused(name, tmp_path):
    canary = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (canary.touch, ())

    torch.save({"state_dict": {"conv1.weight": torch.ones(2)}, "args": Evil()}, tmp_path / name)
    with pytest.raises(ModelError, match=rf"{name} was not loaded: it holds pickled objects of Python.*can run code"):
        image_encoder("timm:resnet10t", tmp_path / name)
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_archives_of_code_are_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "ViT-B-16.pt")
    with pytest.raises(ModelError, match="it is a TorchScript archive, which is code"):
        read_weights(tmp_path / "ViT-B-16.pt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.npz", b"", r"no file of weights that can be read; expected one that ends in \['\.safetensors'"),
        ("w.safetensors", b"abc", "damaged or no safetensors file"),
        ("w.pt", b"", "was not loaded: it is damaged"),
        ("w.pt", b"not a checkpoint", "was not loaded: it"),
    ],
)
def test_damaged_files(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [(torch.ones(2), "holds a Tensor; expected a state dict"), ({"epoch": 3}, r"holds no tensors but \['epoch'\]")],
)
def test_checkpoints_without_a_state_dict(content, message, tmp_path):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=message):
        read_weights(tmp_path / "w.pt")


def test_averaged_weights_come_first(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": {"a": torch.ones(1)}}, tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt")["a"].item() == 1


def test_weights_of_another_architecture_are_compared_by_name(tmp_path, clip):
    path = saved(timm.create_model("resnet18"), tmp_path / "resnet18.safetensors")
    with pytest.raises(
        ModelError, match=r"not those of timm:resnet10t: \d+ of \d+ are missing, such as .*'conv1\.0\.w"
    ):
        image_encoder("timm:resnet10t", path)
    tensors = load_file(saved(timm.create_model("resnet10t"), tmp_path / "a.safetensors"))
    tensors["layer1.0.conv1.weight"] = torch.zeros(1, 2, 3, 3)
    tensors["more"] = torch.zeros(1)
    del tensors["layer2.0.bn1.bias"]
    save_file(tensors, path)
    message = (
        r"1 of \d+ are missing, such as 'layer2\.0\.bn1\.bias'; 1 are unknown, such as 'more'; 1 have another shape, "
        r"such as 'layer1\.0\.conv1\.weight' is \(1, 2, 3, 3\) instead of \(\d+, \d+, 3, 3\)"
    )
    with pytest.raises(ModelError, match=message):
        image_encoder("timm:resnet10t", path)
    source = clip("vit")
    with pytest.raises(ModelError, match=r"not those of open_clip:small-vit: \d+ of \d+ are missing"):
        image_encoder("open_clip:small-vit", saved(timm.create_model("resnet10t"), path))
    short = {name: value for name, value in source.state_dict().items() if "resblocks.1" not in name}
    torch.save(short, tmp_path / "short.pt")
    with pytest.raises(ModelError, match=r"12 of \d+ are missing, such as 'transformer\.resblocks\.1"):
        image_encoder("open_clip:small-vit", tmp_path / "short.pt")


# -- the model that comes of it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timm:resnet10t", "open_clip:small-quick", "open_clip:small-coca"])
def test_the_saved_model_needs_neither_the_weights_nor_a_registry(name, clip, tmp_path, vocabulary, monkeypatch):
    kind = name.rpartition("-")[2]
    source = clip(kind) if name.startswith("open_clip") else timm.create_model("resnet10t")
    path = saved(source, tmp_path / "w.safetensors")
    model, _ = started(image_encoder(name, path), vocabulary)
    folder = model.save(tmp_path / "model")
    path.unlink()
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    again = load(folder)
    assert again.config == model.config
    patches = np.random.default_rng(0).integers(0, 256, (2, *[model.config.image_size] * 2, 3), dtype=np.uint8)
    np.testing.assert_array_equal(again.embed_images(patches), model.embed_images(patches))


def test_a_frozen_tower_stays_as_it_is(vocabulary, tmp_path):
    path = saved(timm.create_model("resnet10t"), tmp_path / "w.safetensors")
    model, _ = started(image_encoder("timm:resnet10t", path), vocabulary)
    model.freeze_image()
    model.train()
    assert model.training
    assert model.text.training
    assert not any(module.training for module in model.visual.modules())
    trained = [name for name, parameter in model.visual.named_parameters() if parameter.requires_grad]
    assert trained == ["head.proj.weight"]
    before = {name: tensor.clone() for name, tensor in model.visual.trunk.state_dict().items()}
    model.encode_image(torch.rand(4, 3, 64, 64) * 255).sum().backward()
    assert model.visual.head.proj.weight.grad is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.visual.trunk.state_dict().items())
    model.freeze_image(False)
    assert model.visual.trunk.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.encode_image(torch.rand(4, 3, 64, 64) * 255)
    assert not torch.equal(model.visual.trunk.bn1.running_mean, before["bn1.running_mean"])


@pytest.mark.parametrize(
    ("kind", "trained"),
    [("vit", ["proj"]), ("resnet", ["attnpool.c_proj.weight", "attnpool.c_proj.bias"]), ("siglip", [])],
)
def test_the_projection_of_a_frozen_clip(kind, trained, clip, tmp_path, vocabulary):
    path = saved(clip(kind), tmp_path / "w.safetensors")
    model, _ = started(image_encoder(f"open_clip:small-{kind}", path), vocabulary)
    model.freeze_image()
    assert [name for name, parameter in model.visual.named_parameters() if parameter.requires_grad] == trained


def test_presets_and_configurations_are_no_encoders(model):
    assert as_encoder("ResNet-10") is None
    assert as_encoder(model.config) is None
    assert as_encoder("no such preset") is None


def test_half_precision_becomes_float32(tmp_path, vocabulary):
    source = timm.create_model("resnet10t").eval()
    path = saved(source.half(), tmp_path / "w.safetensors")
    model, _ = started(image_encoder("timm:resnet10t", path), vocabulary)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    source.float().reset_classifier(0)
    check_features(model.visual.trunk, source, 64)


def test_an_argument_that_timm_does_not_know(vocabulary, tmp_path):
    path = saved(timm.create_model("resnet10t"), tmp_path / "w.safetensors")
    config = image_encoder("timm:resnet10t", path).config
    vision = {**config.vision_cfg, "timm_args": {"depht": 3}}
    with pytest.raises(TypeError, match="depht"):
        HibioModel(replace(config, vision_cfg=vision), vocabulary)


# -- frozen, as they are ---------------------------------------------------------------------------------------------


def some_patches(size, n=2):
    """Patches with smooth structure, as tissue has."""
    coarse = np.random.default_rng(3).integers(0, 256, (n, 7, 7, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, size // 7, axis=1), size // 7, axis=2)


@torch.inference_mode()
def expected_features(source, patches, transform):
    return source(torch.stack([transform(Image.fromarray(patch)) for patch in patches])).numpy()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("resnet18.tv_in1k", {"crop_pct": 0.875, "interpolation": "bilinear"}),
        ("mobilenetv3_small_050", {"crop_pct": 0.875, "interpolation": "bicubic"}),
    ],
)
@pytest.mark.parametrize("size", [224, 308])
def test_features_of_timm_are_those_of_its_evaluation(name, options, size, tmp_path):
    """Reference: timm's own transform, on images of PIL, and its model without the classifier."""
    source = timm.create_model(name).eval()
    path = saved(source, tmp_path / "w.safetensors")
    encoder = feature_encoder(f"timm:{name}", path, patch_size=size)
    source.reset_classifier(0)
    config = {**timm.data.resolve_data_config({}, model=source), **options}
    patches = some_patches(size)
    wanted = expected_features(source, patches, timm.data.create_transform(**config))
    features = encoder.embed_images(patches)
    assert features.dtype == np.float32
    assert features.shape == (2, encoder.embed_dim) == wanted.shape
    assert np.abs(features - wanted).max() < 0.02 * np.abs(wanted[0] - wanted[1]).max()
    assert (encoder.patch_size, encoder.mpp, encoder.source) == (size, None, "local file")


def test_features_of_a_model_saved_for_the_hub(tmp_path):
    """A folder is a name; crop and interpolation are in its config.json."""
    source = vit(num_classes=0)
    source.pretrained_cfg |= {"crop_pct": 0.8, "interpolation": "bilinear", "license": "cc-by-4.0"}
    save_for_hf(source, tmp_path / "small", model_args=VIT)
    encoder = feature_encoder(tmp_path / "small", patch_size=70)
    config = timm.data.resolve_data_config({"img_size": 64}, model=source)
    assert (config["crop_pct"], config["interpolation"], encoder.licence) == (0.8, "bilinear", "cc-by-4.0")
    wanted = expected_features(source, some_patches(70), timm.data.create_transform(**config))
    difference = np.abs(encoder.embed_images(some_patches(70)) - wanted).max()
    assert difference < 0.02 * np.abs(wanted[0] - wanted[1]).max()


@pytest.mark.parametrize("kind", CLIPS)
def test_features_of_a_clip_are_its_image_embeddings(kind, clip, tmp_path):
    source = clip(kind)
    path = saved(source, tmp_path / "w.safetensors")
    encoder = feature_encoder(f"open_clip:small-{kind}", path, patch_size=70)
    size = CLIPS[kind]["vision_cfg"]["image_size"]
    transform = open_clip.image_transform(size, is_train=False)
    wanted = expected_features(partial(source.encode_image, normalize=False), some_patches(70), transform)
    difference = np.abs(encoder.embed_images(some_patches(70)) - wanted).max()
    assert difference < 0.02 * np.abs(wanted[0] - wanted[1]).max()
    assert encoder.output == "image embedding of the CLIP, with its projection"


@pytest.fixture
def small_entry(monkeypatch):
    """A pathology encoder of the registry, made small."""

    def shrink(name, **values):
        monkeypatch.setitem(entries(), name, {**entries()[name], "timm": "vit_tiny_patch16_224", "args": VIT, **values})

    return shrink


@torch.inference_mode()
def test_conch_is_pooled_by_attention_before_its_projection(small_entry, tmp_path):
    """Reference: attention written out, head by head, on weights under CONCH's names."""
    small_entry("conch", image_size=64)
    trunk, width, n_heads = vit(num_classes=0), 512, 8
    pooler = open_clip.transformer.AttentionalPooler(width, 24, n_head=n_heads, n_queries=1)
    norm = torch.nn.LayerNorm(width)
    torch.nn.init.normal_(norm.weight)
    parts = {"trunk": trunk, "attn_pool_contrast": pooler, "ln_contrast": norm, "attn_pool_caption": pooler}
    state = {
        f"visual.{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()
    }
    state |= {
        "visual.proj_contrast": torch.ones(width, width),
        "text.proj": torch.ones(2),
        "logit_scale": torch.ones(()),
    }
    torch.save(state, tmp_path / "pytorch_model.bin")
    encoder = feature_encoder("conch", tmp_path, patch_size=64)
    assert (encoder.embed_dim, encoder.licence) == (width, "CC-BY-NC-ND-4.0")
    assert "proj_contrast=False" in encoder.output

    patches = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(entries()["conch"][key]).view(3, 1, 1) for key in ("mean", "std"))
    tokens = pooler.ln_k(trunk.forward_features((patches / 255 - mean) / std))
    attention, weight_bias = pooler.attn, pooler.attn.in_proj_bias.split(width)
    query = pooler.ln_q(pooler.query) @ attention.q_proj_weight.T + weight_bias[0]
    key, value = (
        tokens @ attention.k_proj_weight.T + weight_bias[1],
        tokens @ attention.v_proj_weight.T + weight_bias[2],
    )
    heads = []
    for q, k, v in zip(query.chunk(n_heads, -1), key.chunk(n_heads, -1), value.chunk(n_heads, -1), strict=True):
        heads.append(torch.softmax(q @ k.transpose(1, 2) / (width // n_heads) ** 0.5, dim=-1) @ v)
    wanted = norm(attention.out_proj(torch.cat(heads, dim=-1))[:, 0]).numpy()
    np.testing.assert_allclose(encoder.embed_images(patches.permute(0, 2, 3, 1).byte().numpy()), wanted, atol=1e-4)

    del state["visual.ln_contrast.bias"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"1 of \d+ are missing, such as 'ln_contrast\.bias'"):
        feature_encoder("conch", tmp_path)


@torch.inference_mode()
def test_virchow_gives_class_token_and_mean_without_register_tokens(small_entry, tmp_path):
    small_entry("virchow2", image_size=64, args={**VIT, "reg_tokens": 4})
    source = vit(num_classes=0, reg_tokens=4)
    encoder = feature_encoder("virchow2", saved(source, tmp_path / "w.safetensors"), patch_size=64)
    patches = some_patches(70)[:, :64, :64]
    mean, std = (torch.tensor(entries()["virchow2"][key]).view(3, 1, 1) for key in ("mean", "std"))
    tokens = source.forward_features((torch.tensor(patches).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()
    assert tokens.shape == (2, 1 + 4 + 16, 24)
    wanted = np.concatenate([tokens[:, 0], tokens[:, 5:].mean(axis=1)], axis=1)
    np.testing.assert_allclose(encoder.embed_images(patches), wanted, atol=1e-5)


@pytest.fixture
def encoder(tmp_path):
    return feature_encoder("timm:resnet10t", saved(timm.create_model("resnet10t"), tmp_path / "w.safetensors"))


def test_features_stand_beside_embeddings(encoder, tmp_path):
    adata = hb.datasets.tissue(12)
    hb.pp.tfidf_sentences(adata)
    hb.tl.embed(adata, model=encoder, key_added="X_uni")
    assert set(adata.obsm) >= {"X_uni_image"}
    assert "X_uni_gene" not in adata.obsm
    features = adata.obsm["X_uni_image"]
    assert (features.shape, features.dtype) == ((12, 512), np.float32)
    (rows, patches), *_ = inputs.numbered_patches(inputs.slides(adata, "library_id"), size=224)
    np.testing.assert_allclose(features[rows], encoder.embed_images(patches), rtol=1e-4, atol=1e-5)
    assert adata.uns["X_uni"]["fingerprint"] == encoder.fingerprint()
    assert adata.uns["X_uni"]["params"]["encoder"] == "timm:resnet10t"
    hb.tl.cluster(adata, n_clusters=2, use_rep="X_uni_image", n_init=2)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ModelError, match="timm:resnet10t reads images only"):
        hb.tl.embed(adata, model=encoder, modality="gene")


def test_fingerprints_tell_weights_and_preprocessing_apart(encoder, tmp_path):
    path = tmp_path / "w.safetensors"
    assert feature_encoder("timm:resnet10t", path).fingerprint() == encoder.fingerprint()
    others = [feature_encoder("timm:resnet10t", path, patch_size=200), feature_encoder("timm:resnet10t", path, mpp=0.5)]
    saved(timm.create_model("resnet10t"), path)
    others.append(feature_encoder("timm:resnet10t", path))
    assert len({one.fingerprint() for one in [encoder, *others]}) == 4


def test_features_at_another_scale_than_that_of_training_are_told(small_entry, tmp_path, caplog):
    small_entry("uni", image_size=64)
    path = saved(vit(num_classes=0), tmp_path / "w.safetensors")
    adata = hb.datasets.tissue(12)
    adata.uns["spatial"]["tissue_0"]["metadata"]["mpp"] = 2.0
    with caplog.at_level("WARNING", logger="hibiost"):
        hb.tl.embed(adata, model=feature_encoder("uni", path, patch_size=64), key_added="X_uni")
    assert "2 micrometres per pixel, the model was trained at 0.5" in caplog.text


@pytest.mark.parametrize(
    ("name", "hub_name"),
    [
        ("densenet121", r"timm/densenet121\.tv_in1k"),
        ("ResNet50", r"timm/resnet50\.tv_in1k"),
        ("openclip", "laion/CLIP-ViT-B-16-laion2B"),
        ("stpath", "prov-gigapath/prov-gigapath"),
    ],
)
def test_names_of_the_paper_are_never_random_weights(name, hub_name, hub):
    with pytest.raises(WeightsUnavailableError, match=rf"the weights of {hub_name}.* are not on this machine"):
        feature_encoder(name)


def test_what_cannot_be_an_encoder():
    with pytest.raises(WeightsUnavailableError, match=r"umpire are not public: the authors give them at request"):
        feature_encoder("umpire")
    with pytest.raises(ModelError, match=r"no image encoder 'densnet121'.*'zoo:NAME'.*Did you mean 'densenet121'"):
        feature_encoder("densnet121")


# -- the zoo ---------------------------------------------------------------------------------------------------------


class Stub:
    """What lazyslide-models' classes offer."""

    license, hf_url, is_gated = "MIT", "https://huggingface.co/someone/stub", True

    def __init__(self, model_path=None, token=None):
        if model_path is None:
            raise OSError("no network")
        self.model = torch.nn.Linear(3, 5)

    def get_transform(self):
        return lambda image: torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1) / 255

    def encode_image(self, pixels):
        return self.model(pixels.mean(dim=(2, 3)))


class Tokens(Stub):
    def encode_image(self, pixels):
        return pixels


class Needy(Stub):
    def __init__(self, model_path=None, token=None):
        raise ImportError("install conch")


@pytest.fixture
def zoo(monkeypatch):
    registry = {"stub": Stub, "tokens": Tokens, "needy": Needy, "segmentation": object}
    monkeypatch.setitem(sys.modules, "lazyslide_models", SimpleNamespace(MODEL_REGISTRY=registry))


def test_an_encoder_of_the_zoo(zoo):
    encoder = feature_encoder("zoo:stub", "weights.pt", patch_size=70)
    assert isinstance(encoder, FeatureEncoder)
    assert (encoder.name, encoder.licence, encoder.embed_dim) == ("zoo:stub", "MIT", 5)
    assert encoder.source == "https://huggingface.co/someone/stub"
    patches = some_patches(70)
    model = encoder.tower.model
    wanted = patches.mean(axis=(1, 2)) / 255 @ model.weight.numpy().T + model.bias.numpy()
    np.testing.assert_allclose(encoder.embed_images(patches), wanted, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert len(encoder.fingerprint()) == 16


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("stub", WeightsUnavailableError, r"They are at https://.*/stub; access has to be asked for.*licence: MIT"),
        ("needy", ModelError, "'zoo:needy' needs another package: install conch"),
        ("stubb", ModelError, r"no image encoder 'stubb'; it has \['needy', 'stub', 'tokens'\].*Did you mean 'stub'"),
        ("segmentation", ModelError, "no image encoder 'segmentation'"),
    ],
)
def test_what_the_zoo_cannot_give(zoo, name, error, message):
    with pytest.raises(error, match=message) as raised:
        feature_encoder(f"zoo:{name}")
    assert type(raised.value) is error


def test_features_that_are_no_vectors(zoo):
    with pytest.raises(ModelError, match=r"features of shape \(3, 70, 70\) for a patch; expected a vector"):
        feature_encoder("zoo:tokens", "weights.pt", patch_size=70)


def test_without_the_zoo(monkeypatch):
    monkeypatch.setitem(sys.modules, "lazyslide_models", None)
    with pytest.raises(ModelError, match=r"pip install 'hibiost\[zoo\]'"):
        feature_encoder("zoo:uni")
