"""Image towers from elsewhere: small random models, saved as timm, open_clip and transformers save theirs."""

import hashlib
import json
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import huggingface_hub
import numpy as np
import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants, errors
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

import hibiost as hb
from hibiost.errors import ModelError
from hibiost.model import HibioModel, ImageEncoder, image_encoder, load
from hibiost.model.encoders import as_encoder
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
            r"MahmoodLab/UNI are not on this machine.*ask for access there, since it is gated.*hf download .*weights=",
        ),
        ("plip", r"vinid/plip are not on this machine(?!.*gated).*'hf download vinid/plip pytorch_model\.bin'"),
        ("timm:resnet10t", r"timm/resnet10t\.c3_in1k are not on this machine.*weights="),
        ("hf-hub:someone/something", r"someone/something are not on this machine"),
    ],
)
def test_without_network_it_tells_how_to_bring_the_file(name, message, hub):
    with pytest.raises(ModelError, match=message):
        image_encoder(name)


@pytest.mark.parametrize("error", [errors.GatedRepoError, errors.RepositoryNotFoundError])
def test_without_access_it_tells_how_to_get_it(error, hub, monkeypatch):
    def refuse(hub, *args, **options):
        raise error("refused", response=Mock(headers={}, status_code=403))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(ModelError, match=r"no access to huggingface\.co/MahmoodLab/UNI.*accept its terms.*HF_TOKEN"):
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
