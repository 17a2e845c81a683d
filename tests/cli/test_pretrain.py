import json
import tomllib
from types import SimpleNamespace

import pandas as pd
import pytest

import hibiost as hb
from hibiost.cli import main
from hibiost.cli.pretrain import Configuration, configuration_file
from hibiost.errors import DataError
from hibiost.train import Recipe

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
    hb.io.write_hest(hb.datasets.tissue(20, n_genes=60, n_slides=3), "corpus")
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


# -- what ships ------------------------------------------------------------------------------------------------------

BASE = ["pretrain", "hibiost-base", "--dry-run", "--set", "image_encoder=ResNet-10"]
"""With a small model."""


def test_the_paper_s_configuration_ships():
    found = Configuration.read(configuration_file("hibiost-base"), ["data=hest", "run=runs/base"])
    config = hb.model.ModelConfig.preset(found.image_encoder)
    assert Recipe().updated({**config.recipe, **found.recipe}) == Recipe(), "the defaults are the paper's"
    assert (config.image_size, config.context_length, found.mpp) == (224, 280, 0.5)
    hb.train.Engine.of(found.engine)


def test_the_paper_s_slides_without_those_it_tests_on():
    select = Configuration.read(configuration_file("hibiost-base"), required=()).select
    tested = [name for dataset in ("her2", "breast", "kidney", "dlpfc") for name in hb.benchmark.recipe(dataset).ids]
    others = ["SPA50", "SPA155", "SPA5", "NCBI691", "NCBI715", "NCBI70", "MISC13", "MISC101", "TENX1", "INT1"]
    index = pd.DataFrame({"species": "Homo sapiens", "st_technology": "Visium", "mpp": 0.5}, [*tested, *others])
    index.loc[["SPA5", "INT1"], "st_technology"] = "Spatial Transcriptomics", "Visium HD"
    index.loc["NCBI691", "species"], index.loc["TENX1", "mpp"] = "Mus musculus", None
    chosen = index.rename_axis("id").eval(select, engine="python")
    assert list(index.index[chosen]) == ["SPA50", "SPA155", "SPA5", "NCBI715", "NCBI70", "MISC13", "MISC101"]


def test_names_that_do_not_ship(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no configuration 'hibiost-bas'; .*'hibiost-base'.* Did you mean 'hibiost-b"):
        configuration_file("hibiost-bas")
    (tmp_path / "hibiost-base").write_text(TEXT)
    assert Configuration.read(configuration_file("hibiost-base")).data == "corpus", "a file goes first"


# -- dry runs --------------------------------------------------------------------------------------------------------


def paragraphs(text):
    """What is printed, without line breaks inside a paragraph."""
    return text.replace("\n  ", " ").splitlines()


def test_a_dry_run_tells_all_and_writes_nothing(path, capsys):
    hb.io.write_hest(hb.datasets.tissue(40, n_genes=60, n_slides=4), "corpus")
    (path.parent / "corpus" / "st" / "tissue_1.h5ad").write_text("damaged")
    before = sorted(path.parent.rglob("*"))
    options = [
        "select=n_genes > 0",
        "validation=id == 'tissue_3'",
        "engine.unreadable=skip",
        "recipe.shift=0.125",
        "engine.micro_batch=8",
    ]
    assert main(["pretrain", str(path), "--dry-run", *(word for each in options for word in ("--set", each))]) == 0
    assert sorted(path.parent.rglob("*")) == before
    lines = paragraphs(capsys.readouterr().out)
    for expected in (
        "data: 4 slides; species: unknown 4; st_technology: unknown 4",
        "selected: 2 slides; 2 to train on, 0 left out",
        "spots: 80; 40 to 40 a slide, median 40",
        "validation: 1 slides, 40 spots",
        "steps: 2 an epoch, of 30 spots; 4 in 2 epochs; 120 samples",
    ):
        assert expected in lines
    assert any("tissue_1" in line and line.endswith("(blocking)") for line in lines)
    assert f"disk: {120 * 140**2 * 3 / 1e9:.1f} GB" in "\n".join(lines)
    assert any(line.startswith("genes: ASSUMED 60,") for line in lines)
    table = [line.split() for line in lines[lines.index("") + 1 :]]
    rows = [cells[:4] for cells in table if cells and cells[0].isdigit()]
    assert rows == [
        ["1", "30", "8", "twice"],
        ["2", "15", "8", "twice"],
        ["4", "8", "8", "once"],
        ["8", "4", "4", "once"],
        ["16", "2", "2", "once"],
    ], "no more GPUs than spots"


def test_without_data_the_paper_s_numbers_are_told_as_assumed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*BASE, "--set", "data=hest", "--samples-per-second", "1000"]) == 0
    out = capsys.readouterr().out
    lines = paragraphs(out)
    assert "data: nothing at hest." in lines
    assert any(line.startswith("ASSUMED instead: the 1,500,000 spots of HEST-1k") for line in lines)
    row = next(line.split() for line in lines if line.startswith("1 "))
    steps = 1_500_000 // 128
    assert float(row[-1]) == pytest.approx(steps * 128 * 40 / 1000 / 3600, rel=5e-3)
    assert "At the 1,000 samples/s given for one GPU." in lines[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gpu", [False, True])
def test_a_speed_is_measured_or_said_to_be_assumed(gpu, monkeypatch):
    from hibiost.cli import _dry_run
    from hibiost.train import speed

    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "GPU X")
    monkeypatch.setattr(speed, "measured_speed", lambda *args, **options: 70.0)
    found, data = SimpleNamespace(devices=[SimpleNamespace(flops=1e9)]), _dry_run._Data(9, 0, 9, 0)
    rate, told = _dry_run._speed(Configuration(), None, None, None, found, data, None)
    assert rate == (70e9 if gpu else 395e12)
    assert told.startswith("MEASURED: 70 samples/s on one GPU X" if gpu else "ASSUMED, not measured: 395 TFLOP/s")


def test_of_several_processes_one_tells(monkeypatch, capsys):
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
    for name, value in zip(names, "110221", strict=True):
        monkeypatch.setenv(name, value)
    assert main(BASE) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples-per-second", "5"], "--samples-per-second is for the hours that --dry-run tells"),
        (["--dry-run", "--samples-per-second", "0"], "is 0; expected a number above 0"),
        (["--dry-run", "--set", "engine.micro=1"], "Did you mean 'micro_batch'"),
    ],
)
def test_refusals_of_dry_runs(path, arguments, message, capsys):
    assert main(["pretrain", str(path), *arguments]) == 1
    assert message in capsys.readouterr().err
