"""Groups of weights: decay and learning rate of each, against what is written here by hand."""

from collections import Counter

import pytest
import timm
import torch
from torch import nn

from hibiost.errors import ModelError
from hibiost.genes import Vocabulary
from hibiost.model import HibioModel, ModelConfig
from hibiost.train import Recipe
from hibiost.train.groups import parameter_groups

RECIPE = Recipe(lr=1e-3, weight_decay=0.1)
HALF = RECIPE.updated({"layer_decay": 0.5})


def new_model(vision_cfg, **options):
    config = ModelConfig(
        embed_dim=16,
        vision_cfg=vision_cfg,
        text_cfg={"context_length": 8, "width": 16, "heads": 2, "layers": 1},
        **options,
    )
    return HibioModel(config, Vocabulary(("A", "B"), [1, 2], [3, 3]))


@pytest.fixture(autouse=True)
def _own_random_state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def resnet():
    return new_model({"timm_model_name": "resnet10t", "timm_pool": "avg", "image_size": 32})


@pytest.fixture
def vit():
    args = {"img_size": 32, "depth": 3, "embed_dim": 24, "num_heads": 2, "reg_tokens": 2, "class_token": True}
    return new_model({"timm_model_name": "vit_tiny_patch16_224", "timm_args": args, "image_size": 32})


@pytest.fixture
def clip():
    return new_model({"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32})


@pytest.fixture
def clip_resnet():
    return new_model({"layers": [1, 2, 1, 1], "width": 8, "head_width": 16, "image_size": 64})


def by_name(model, groups):
    """Rate and decay of each trainable weight; each stands in one group, and no other does."""
    found = Counter(id(parameter) for group in groups for parameter in group["params"])
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(found.values()) == {1}
    assert set(found) == {id(parameter) for parameter in trainable.values()}
    rates = {id(p): (group["lr"] / RECIPE.lr, group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: rates[id(parameter)] for name, parameter in trainable.items()}


@pytest.mark.parametrize("kind", ["resnet", "vit", "clip", "clip_resnet"])
@pytest.mark.parametrize("recipe", [RECIPE, HALF], ids=["one rate", "a rate a layer"])
def test_matrices_decay_and_nothing_else(kind, recipe, request):
    model = request.getfixturevalue(kind)
    rates = by_name(model, parameter_groups(model, recipe, tower=model.visual))
    spared = {name for name, (_, decay) in rates.items() if decay == 0}
    assert {decay for _, decay in rates.values()} == {0, 0.1}
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            assert {f"{name}.{part}" for part, _ in module.named_parameters()} <= spared
    assert {name for name in rates if name.endswith("bias")} <= spared
    assert {"logit_scale", "text.positional_embedding"} <= spared
    ends = ("pos_embed", "cls_token", "reg_token", "class_embedding", "positional_embedding")
    assert {name for name in rates if name.endswith(ends)} <= spared
    assert "text.token_embedding.weight" not in spared
    matrices = [name for name, p in model.named_parameters() if p.ndim > 1 and not name.endswith(ends)]
    assert spared.isdisjoint(matrices)


def test_one_rate_makes_two_groups(resnet):
    groups = parameter_groups(resnet, RECIPE, tower=resnet.visual)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.1), (1e-3, 0.0)]


EXPECTED = {
    "vit": {
        "visual.trunk.cls_token": 1 / 16,
        "visual.trunk.reg_token": 1 / 16,
        "visual.trunk.pos_embed": 1 / 16,
        "visual.trunk.patch_embed.proj.weight": 1 / 16,
        "visual.trunk.blocks.0.attn.qkv.weight": 1 / 8,
        "visual.trunk.blocks.1.norm1.weight": 1 / 4,
        "visual.trunk.blocks.2.mlp.fc2.bias": 1 / 2,
        "visual.trunk.norm.weight": 1 / 2,
        "visual.head.proj.weight": 1,
        "text.token_embedding.weight": 1,
        "logit_scale": 1,
    },
    "resnet": {
        "visual.trunk.conv1.0.weight": 1 / 32,
        "visual.trunk.bn1.weight": 1 / 32,
        "visual.trunk.layer1.0.conv1.weight": 1 / 16,
        "visual.trunk.layer2.0.bn2.bias": 1 / 8,
        "visual.trunk.layer3.0.downsample.1.weight": 1 / 4,
        "visual.trunk.layer4.0.conv2.weight": 1 / 2,
        "visual.head.proj.weight": 1,
        "text.transformer.resblocks.0.ln_1.weight": 1,
    },
    "clip": {
        "visual.class_embedding": 1 / 8,
        "visual.positional_embedding": 1 / 8,
        "visual.conv1.weight": 1 / 8,
        "visual.ln_pre.bias": 1 / 8,
        "visual.transformer.resblocks.0.attn.in_proj_weight": 1 / 4,
        "visual.transformer.resblocks.1.ln_2.weight": 1 / 2,
        "visual.ln_post.weight": 1 / 2,
        "visual.proj": 1,
        "text.text_projection": 1,
    },
    "clip_resnet": {
        "visual.conv3.weight": 1 / 64,
        "visual.bn1.bias": 1 / 64,
        "visual.layer1.0.conv1.weight": 1 / 32,
        "visual.layer2.0.conv1.weight": 1 / 16,
        "visual.layer2.1.conv3.weight": 1 / 8,
        "visual.layer3.0.bn1.weight": 1 / 4,
        "visual.layer4.0.downsample.0.weight": 1 / 2,
        "visual.attnpool.c_proj.weight": 1,
        "visual.attnpool.positional_embedding": 1,
    },
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_each_layer_learns_at_half_the_rate_of_the_next(kind, request):
    model = request.getfixturevalue(kind)
    rates = by_name(model, parameter_groups(model, HALF, tower=model.visual))
    assert {name: rates[name][0] for name in EXPECTED[kind]} == EXPECTED[kind]
    assert {rate for name, (rate, _) in rates.items() if name.startswith("text")} == {1}


def test_rates_are_those_of_timm_within_a_tower(vit):
    """timm's own groups of the same trunk with a classifier in the place of the projection."""
    from timm.optim import param_groups_layer_decay

    args = {"img_size": 32, "depth": 3, "embed_dim": 24, "num_heads": 2, "reg_tokens": 2}
    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=16, **args)
    names = {id(parameter): name for name, parameter in trunk.named_parameters()}
    theirs = param_groups_layer_decay(trunk, 0.1, no_weight_decay_list=trunk.no_weight_decay(), layer_decay=0.5)
    expected = {
        names[id(p)]: (group["lr_scale"], group["weight_decay"])
        for group in theirs
        for p in group["params"]
        if not names[id(p)].startswith("head")
    }
    rates = by_name(vit, parameter_groups(vit, HALF, tower=vit.visual))
    assert {name: rates[f"visual.trunk.{name}"] for name in expected} == expected


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_frozen_weights_are_in_no_group(kind, request):
    model = request.getfixturevalue(kind)
    model.freeze_image()
    rates = by_name(model, parameter_groups(model, HALF, tower=model.visual))
    image = {name: rate for name, (rate, _) in rates.items() if name.startswith("visual")}
    assert image == {"visual.head.proj.weight" if kind == "vit" else "visual.proj": 1}


def test_what_timm_spares_is_spared():
    args = {"img_size": 64, "window_size": 2, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
    model = new_model({"timm_model_name": "swin_tiny_patch4_window7_224", "timm_args": args})
    rates = by_name(model, parameter_groups(model, RECIPE, tower=model.visual))
    tables = [decay for name, (_, decay) in rates.items() if name.endswith("relative_position_bias_table")]
    assert len(tables) == 4
    assert set(tables) == {0}


def test_a_tower_of_unknown_layers_is_refused(vit):
    vit.visual.trunk = nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"layers of Linear; leave layer_decay at 1"):
        parameter_groups(vit, HALF, tower=vit.visual)


def test_the_schedule_keeps_the_shares(vit):
    """Lightning's task scales every group by one factor."""
    groups = parameter_groups(vit, HALF, tower=vit.visual)
    optimizer = torch.optim.AdamW(groups, lr=HALF.lr)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1)
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    assert rates == pytest.approx([1e-4 / 16, 1e-4 / 8, 1e-4 / 4, 1e-4 / 2, 1e-4])
