"""Runs of ``hb.tl.pretrain``: gone on with, finished, refused; validation; several processes."""

import json
import os
import subprocess
import sys

import anndata as ad
import lightning
import numpy as np
import pytest
from PIL import Image

import hibiost as hb
from hibiost.errors import DataError, ImageError, RunError


@pytest.fixture
def files(reference, slide, tmp_path):
    """A corpus of three slides, with images on disk."""
    slides = hb.io.concat([reference, slide])
    for name, entry in slides.uns["spatial"].items():
        path = tmp_path / f"{name}.png"
        Image.fromarray(entry["images"].pop("hires")).save(path)
        entry["metadata"]["source_image_path"] = str(path)
    hb.io.write_hest(slides, tmp_path / "corpus")
    return tmp_path / "corpus"


def train(data, tiny, **options):
    return hb.tl.pretrain(data, image_encoder=tiny, **{"epochs": 2, **options})


def killed(monkeypatch, step):
    """The process ends after a step, as far as the run can tell."""
    step_of = lightning.Trainer.save_checkpoint

    def save_and_end(trainer, *args, **kwargs):
        step_of(trainer, *args, **kwargs)
        if trainer.global_step >= step:
            raise SystemExit(9)

    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", save_and_end)


def test_a_run_goes_on_and_ends(reference, tiny, tmp_path, monkeypatch, caplog):
    recipe = {"region_start": 1, "n_neighbors": 6}
    expected = train(reference.copy(), tiny, recipe=recipe, epochs=3)
    with monkeypatch.context() as patch:
        killed(patch, 6)
        with pytest.raises(SystemExit):
            train(reference.copy(), tiny, recipe=recipe, epochs=3, run=tmp_path / "run")
    adata = reference.copy()
    model = train(adata, tiny, recipe=recipe, epochs=3, run=tmp_path / "run")
    assert "going on from step 6" in caplog.text
    assert model.fingerprint() == expected.fingerprint()
    assert model.training_info == expected.training_info
    assert list(adata.obsm["region_history"]) == ["0", "1"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.jsonl", "model", "run.json"]
    again = train(reference, tiny, recipe=recipe, epochs=3, run=tmp_path / "run")
    assert "is finished" in caplog.text
    assert again.fingerprint() == hb.model.load(tmp_path / "run" / "model").fingerprint() == model.fingerprint()


def test_another_configuration_or_other_data_are_refused(reference, tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed(patch, 1)
        with pytest.raises(SystemExit):
            train(reference, tiny, run=tmp_path)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(RunError, match=r"other configuration: recipe\.lr was 0\.003, now 0\.1; seed was 0, now 1"):
        train(reference, tiny, run=tmp_path, recipe={"lr": 0.1}, rng=1)
    fewer = reference[5:].copy()
    with pytest.raises(RunError, match=r"other data: 0/tissue_0\.crc was .*; 0/tissue_0\.n_spots was 100, now 95"):
        train(fewer, tiny, run=tmp_path)
    redrawn = reference.copy()
    redrawn.uns["spatial"]["tissue_1"]["images"] = {
        name: 255 - pixels for name, pixels in redrawn.uns["spatial"]["tissue_1"]["images"].items()
    }
    with pytest.raises(RunError, match="other patches: 0/tissue_1 was"):
        train(redrawn, tiny, run=tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept
    train(reference, tiny, run=tmp_path, engine={"n_workers": 1, "micro_batch": 32})


def test_decoded_patches_are_used_again_while_their_files_stay(files, tiny, tmp_path, monkeypatch, caplog):
    for told in (False, True):
        with monkeypatch.context() as patch:
            killed(patch, 1)
            with pytest.raises(SystemExit):
                train(files, tiny, run=tmp_path / "run", epochs=3)
        assert ("patches are taken from" in caplog.text) is told
    caplog.clear()
    os.utime(tmp_path / "tissue_1.png", ns=(1, 1))
    model = train(files, tiny, run=tmp_path / "run", epochs=3)
    assert "patches are taken from" not in caplog.text
    assert model.fingerprint() == train(files, tiny, epochs=3).fingerprint()


def test_validation_is_measured_on_slides_of_its_own(reference, slide, tiny, tmp_path, model):
    plain, epochs = model, tiny.recipe["epochs"]
    model = train(reference, tiny, epochs=epochs, validation=slide, run=tmp_path)
    history = model.training_info["history"]
    assert all(0 <= entry["recall_1"] <= entry["recall_5"] <= entry["recall_10"] <= 100 for entry in history)
    hb.pp.tfidf_sentences(slide, n_genes=40, vocabulary=model.vocabulary)
    hb.tl.embed(slide, model=model)
    recall = hb.metrics.recall_at_percent(slide.obsm["X_hibiost_image"], slide.obsm["X_hibiost_gene"])
    assert [history[-1][f"recall_{p}"] for p in (1, 5, 10)] == pytest.approx([recall[p] for p in (1, 5, 10)], abs=1.01)
    assert recall[10] > 25
    assert plain.fingerprint() == model.fingerprint()
    with pytest.raises(DataError, match="2 slides are trained on and in validation=, such as 'tissue_0'"):
        train(reference, tiny, validation=reference)


def test_a_batch_larger_than_the_data_is_told(reference, tiny, caplog):
    train(reference, tiny, recipe={"batch_size": 500}, epochs=1)
    assert "a batch of 500 spots is more than there are: all 200 are one batch" in caplog.text


def test_slides_that_cannot_be_read(files, tiny, tmp_path, caplog):
    """Damaged after they were checked: stopped at by name, or skipped and counted."""
    path = tmp_path / "tissue_1.png"
    path.write_bytes(path.read_bytes()[:-20000])
    with pytest.raises(ImageError, match=r"tissue_1\.png cannot be read"):
        train(files, tiny, run=tmp_path / "stop")
    model = train(files, tiny, run=tmp_path / "skip", engine={"unreadable": "skip"})
    assert model.training_info["slides"] == ["tissue_0", "tissue_2"]
    assert model.training_info["n_spots"] == 200
    assert "slide 'tissue_1' is left out" in caplog.text
    assert "1 of 3 slides are left out" in caplog.text


def test_no_room_for_the_patches(reference, tiny, tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(RunError, match=r"needs 0\.0 GB for the patches of 200 spots.*make room"):
        train(reference, tiny, run=tmp_path)


# -- several processes -----------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
import hibiost as hb
import anndata as ad
from hibiost._ranks import joined
import torch
torch.set_num_threads(1)
out, data, config = sys.argv[1:]
config = hb.model.ModelConfig.from_dict(json.loads(config))
with joined("cpu") as ranks:
    recipe = {"region_start": 1, "n_neighbors": 6, "lr": 1e-6}
    model = hb.tl.pretrain(data, image_encoder=config, epochs=2, recipe=recipe, run=out + "/run", device="cpu")
    adata = ad.read_h5ad(out + "/three.h5ad")
    hb.pp.tfidf_sentences(adata, n_genes=40, vocabulary=model.vocabulary)
    hb.tl.embed(adata, model=model, device="cpu")
    if ranks.first:
        adata.write_h5ad(out + "/embedded.h5ad")
"""


def test_processes_share_reading_training_and_embedding(files, reference, slide, tiny, tmp_path):
    hb.io.concat([reference, slide]).write_h5ad(tmp_path / "three.h5ad")
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = [str(tmp_path), str(files), json.dumps(tiny.to_dict())]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", str(tmp_path / "script.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    recipe = {"region_start": 1, "n_neighbors": 6, "lr": 1e-6}
    expected = hb.tl.pretrain(str(files), image_encoder=tiny, epochs=2, recipe=recipe)
    model = hb.model.load(tmp_path / "run" / "model")
    assert model.vocabulary == expected.vocabulary
    assert model.training_info["slides"] == expected.training_info["slides"]
    assert model.training_info["regions"] == expected.training_info["regions"]
    for ours, theirs in zip(model.training_info["history"], expected.training_info["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    embedded = ad.read_h5ad(tmp_path / "embedded.h5ad")
    alone = ad.read_h5ad(tmp_path / "three.h5ad")
    hb.pp.tfidf_sentences(alone, n_genes=40, vocabulary=model.vocabulary)
    hb.tl.embed(alone, model=model)
    for name in ("X_hibiost_image", "X_hibiost_gene"):
        np.testing.assert_allclose(embedded.obsm[name], alone.obsm[name], atol=1e-5)


def test_processes_need_a_folder_and_enough_gpus(monkeypatch):
    import torch

    from hibiost import _ranks
    from hibiost.tl._pretrain import _folder

    with (
        pytest.raises(RunError, match="2 processes train together; give them a folder"),
        _folder(None, _ranks.Ranks(1, 2, 1, 2)),
    ):
        pass
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RunError, match=r"4 processes on this machine, but 2 GPUs.*--nproc-per-node 2"):
        _ranks._take_gpu(None)
