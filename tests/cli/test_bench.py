import pytest

import hibiost as hb
from hibiost.cli import main


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the benchmark is called with."""
    calls = []

    def run(data, models, *, out, **options):
        out.mkdir()
        (out / "report.md").write_text("# Benchmark\n")
        calls.append((data, models, options))

    monkeypatch.setattr(hb.benchmark, "run", run)
    return lambda *arguments: (main(["bench", "--out", str(tmp_path / "out"), *arguments]), *calls[-1:])


def test_lists_and_numbers(asked, capsys):
    status, (data, models, options) = asked(
        "--data", "hest", "--models", "ResNet-10,uni", "--tasks", "few-shot,retrieval", "--folds", "3", "--seeds", "2"
    )
    assert (status, data, models) == (0, "hest", ["ResNet-10", "uni"])
    assert (options["tasks"], options["n_folds"], list(options["seeds"])) == (["few-shot", "retrieval"], 3, [0, 1])
    assert "# Benchmark" in capsys.readouterr().out


def test_models_with_options(asked, tmp_path):
    path = tmp_path / "models.toml"
    path.write_text('uni = "uni"\n["w/o regions"]\nimage_encoder = "ResNet-10"\nrecipe = { lambda3 = 0 }\n')
    _, (data, models, options) = asked("--data", "a.h5ad", "b.h5ad", "--models", str(path), "--folds", "all")
    assert data == ["a.h5ad", "b.h5ad"]
    assert models == {"uni": "uni", "w/o regions": {"image_encoder": "ResNet-10", "recipe": {"lambda3": 0}}}
    assert (options["n_folds"], options["split"]) == ("all", "patient")


def test_refusals(asked, tmp_path, capsys):
    (tmp_path / "broken.toml").write_text("models")
    for arguments, told in (
        (["--models", str(tmp_path / "absent.toml")], "no models at"),
        (["--models", str(tmp_path / "broken.toml")], "is no TOML"),
        (["--folds", "half"], "--folds is 'half'; expected a number or 'all'"),
    ):
        assert asked("--data", "her2st", *arguments)[0] == 1
        assert told in capsys.readouterr().err
