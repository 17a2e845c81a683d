import json
import tomllib

import pytest

import hibiost as hb
from hibiost.cli import main
from hibiost.cli.pretrain import Configuration
from hibiost.errors import DataError

TEXT = """
data = "corpus"
run = "run"
image_encoder = "ResNet-10"

[recipe]
epochs = 2
batch_size = 30
n_genes = 20
region_start = 1
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(TEXT)
    return tmp_path / "config.toml"


def test_what_is_set_goes_before_the_file(path):
    overrides = [
        "recipe.epochs=5",
        "recipe.lr = 1e-3",
        "select=organ == 'Breast'",
        'engine.loggers=["wandb"]',
        "mpp=0.5",
    ]
    found = Configuration.read(path, overrides)
    assert found.recipe == {"epochs": 5, "batch_size": 30, "n_genes": 20, "region_start": 1, "lr": 1e-3}
    assert (found.select, found.engine, found.mpp, found.seed) == ("organ == 'Breast'", {"loggers": ["wandb"]}, 0.5, 0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=3", r"a configuration has no 'epoch'; it has \["),
        ("image_encoding=x", "Did you mean 'image_encoder'"),
        ("seed=x", "seed is 'x'; expected a whole number"),
        ("seed=true", "seed is True; expected a whole number"),
        ("data=[1]", r"data is \[1\]; expected text or a list of texts"),
        ("recipe=3", "recipe is 3; expected a table"),
        ("mpp=half", "mpp is 'half'; expected a number"),
        ("seed.x=1", "--set 'seed.x=1'"),
        ("seed", "--set 'seed'; expected key=value"),
    ],
)
def test_refusals(path, override, message):
    if override == "seed.x=1":
        path.write_text("seed = 1\n" + TEXT)
        message += ": 'seed' is no table"
    with pytest.raises(DataError, match=message):
        Configuration.read(path, [override])


def test_files_that_are_none(path):
    with pytest.raises(DataError, match="no configuration at"):
        Configuration.read(path.with_name("absent.toml"))
    path.write_text("data = corpus")
    with pytest.raises(DataError, match=r"is no TOML .*text in quotes"):
        Configuration.read(path)
    path.write_text("data = 'corpus'")
    with pytest.raises(DataError, match="lacks 'run': run = 'folder'"):
        Configuration.read(path)


def test_what_is_written_is_read_back(path):
    given = Configuration.read(path, ['select=organ == "Brust ä"', "engine.micro_batch=8", "recipe.betas=[0.9, 0.99]"])
    given.write(path.with_name("copy.toml"))
    again = Configuration.read(path.with_name("copy.toml"))
    assert again.data == [str(path.parent / "corpus")]
    assert again.run == str(path.parent / "run")
    same = ("select", "recipe", "engine", "seed", "image_encoder", "mpp", "validation")
    assert [getattr(again, name) for name in same] == [getattr(given, name) for name in same]


def test_the_command_trains_as_the_verb_does(path, capsys):
    hb.io.write_hest(hb.datasets.tissue(40, n_genes=60, n_slides=3), "corpus")
    command = ["pretrain", str(path), "--set", "validation=patient == 'P2'"]
    assert main(command) == 0
    assert "export HIBIOST_MODEL=" in capsys.readouterr().out
    model = hb.model.load("run/model")
    assert model.training_info["slides"] == ["tissue_0", "tissue_1"]
    corpus = hb.io.Corpus("corpus").select("patient != 'P2'")
    recipe = tomllib.loads(TEXT)["recipe"]
    assert hb.tl.pretrain(corpus, image_encoder="ResNet-10", recipe=recipe).fingerprint() == model.fingerprint()
    events = [json.loads(line)["event"] for line in (path.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    assert events.count("epoch") == 2
    assert tomllib.loads((path.parent / "run" / "model" / "config.toml").read_text())["validation"] == "patient == 'P2'"

    assert main(command) == 0, "a finished run is its model"
    assert main(["pretrain", "run/config.toml"]) == 0
    capsys.readouterr()
    assert main([*command, "--set", "recipe.epochs=3"]) == 1
    assert "recipe.epochs was 2, now 3" in capsys.readouterr().err
    assert main([*command, "--set", "recipe.epoch=3", "--set", "run=other"]) == 1
    assert "Did you mean 'epochs'" in capsys.readouterr().err
