"""A tiny model and spots of four kinds, for the tests of this room and for the processes that they start."""

import json
import os
import signal
import socket
import sys
from pathlib import Path

import lightning
import numpy as np
import torch
from scipy import sparse
from torch.multiprocessing import start_processes

from hibiost._ranks import joined
from hibiost.genes import Vocabulary
from hibiost.model import HibioModel, ModelConfig
from hibiost.train import Engine, Pairs, PathwayAnchors, Recipe, Regions, Run, fit

RECIPE = Recipe(epochs=6, batch_size=16, lr=3e-3, precision="32")
SLIDE = np.repeat([0, 1], 24)
XY = np.stack([np.arange(48) // 4 % 6, np.arange(48) % 4], axis=1)
"""Each slide is a column of blocks, four kinds of spots side by side."""
TOWERS = {
    "resnet": {"timm_model_name": "resnet10t", "timm_pool": "avg", "image_size": 32},
    "vit": {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 32},
}


def new_model(seed=0, tower="resnet"):
    config = ModelConfig(
        embed_dim=16,
        vision_cfg=TOWERS[tower],
        text_cfg={"context_length": 8, "width": 16, "heads": 2, "layers": 1},
    )
    return HibioModel(config, Vocabulary(("A", "B", "C", "D"), [4] * 4, [9] * 4), rng=seed)


def pairs(model, n=48):
    """Four kinds of spots: a colour and the genes that go with it."""
    kind = np.arange(n) % 4
    noise = np.random.default_rng(0).integers(0, 30, (n, 36, 36, 3))
    patches = np.array([[30, 30, 200], [200, 30, 30], [30, 200, 30], [150, 150, 150]])[kind][:, None, None] + noise
    return Pairs(patches.astype(np.uint8), model.tokenizer(np.stack([kind, (kind + 1) % 4], axis=1)))


def levels(model, **recipe):
    """What ``fit`` needs for all three levels: two pathways for the first two kinds of spots, none for the others."""
    values = RECIPE.updated({"region_start": 2, "region_every": 2, "n_neighbors": 4, "n_negatives": 1, **recipe})
    kind = np.arange(48) % 4
    overlap = sparse.csr_matrix(np.eye(4, 3)[:, :2][kind].astype(np.float32))
    members = sparse.csr_matrix(np.array([[1, 1, 0, 0], [0, 1, 1, 0]], dtype=np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        anchors = PathwayAnchors(overlap, members, embed_dim=16, width=16, n_negatives=values.n_negatives)
    regions = Regions(SLIDE, XY, n_neighbors=values.n_neighbors, seed=0)
    return {"recipe": values, "pathways": anchors, "regions": regions, "seed": 0, "progress": False}


class Watch(lightning.Callback):
    """The loss of each step, and the gradients of the last."""

    def __init__(self):
        self.losses, self.gradients = [], {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.losses.append(pl_module.latest["loss"].item())
        self.gradients = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}


def trained(*, tower="vit", engine=None, run=None, callbacks=(), **recipe):
    """Train on all levels; losses of the steps, gradients of the last, history, renewals and weights."""
    model, watch = new_model(tower=tower), Watch()
    validation = pairs(model, 24), SLIDE[12:36]
    history, renewals = fit(
        model,
        pairs(model),
        validation=validation,
        engine=Engine.of(engine),
        run=None if run is None else Run(Path(run)),
        callbacks=[watch, *callbacks],
        **levels(model, **recipe),
    )
    return {
        "losses": watch.losses,
        "gradients": watch.gradients,
        "history": history,
        "renewals": renewals,
        "weights": model.state_dict(),
    }


def save(out, options):
    """Alone, or one of several processes: the first writes what it found."""
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        found = trained(**options)
        if ranks.first:
            torch.save(found, out)


def as_rank(number, n, port, out, options):
    """One of the processes that work together, as torchrun tells it."""
    os.environ |= {"TORCHELASTIC_RUN_ID": "toy", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(number))
    os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(n))
    save(out, options)


def together(n, out, options):
    """Processes that work together; forked, since each start of its own would import torch anew."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    start_processes(as_rank, (n, port, out, options), nprocs=n, start_method="fork")


def in_turn(n, out, options):
    """Processes that do the same one after the other, each told by its number, until one is not killed."""
    for _ in range(n):
        number = os.fork()
        if not number:
            save(out, options)
            os._exit(0)
        print(number, flush=True)
        status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
        if status != -signal.SIGKILL:
            break
    sys.exit(status)


if __name__ == "__main__":
    start = {"together": together, "in_turn": in_turn}[sys.argv[1]]
    for arguments in json.loads(sys.argv[2]):
        start(*arguments)
