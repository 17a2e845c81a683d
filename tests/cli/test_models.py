import hibiost as hb
from hibiost.cli import main


def test_everything_that_goes_by_a_name(tmp_path, capsys, monkeypatch):
    import huggingface_hub

    place = tmp_path / "pytorch_model.bin"
    there = {("MahmoodLab/UNI", "pytorch_model.bin"): str(place)}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda hub, file, revision: there.get((hub, file)))
    with hb.settings.override(model="my-model"):
        assert main(["models"]) == 0
    table, _, default = capsys.readouterr().out.partition("\n\n")
    rows = {line.split()[0]: line for line in table.splitlines()}
    assert list(rows) == ["name", *hb.model.list(), *hb.model.presets(), *hb.model.encoders()]
    assert rows["uni"].split() == ["uni", "encoder", "CC-BY-NC-ND-4.0", "on", "request", "here"]
    assert rows["plip"].endswith("open        at huggingface.co/vinid/plip")
    assert default.strip().endswith("my-model")


def test_a_model_that_ships_and_its_card(tmp_path, capsys, monkeypatch):
    from hibiost.model import registry

    monkeypatch.setattr(registry, "SHIPPED", tmp_path)
    vocabulary = hb.genes.Vocabulary(("ERBB2", "MGP"), [1, 2], [3, 3])
    model = hb.model.HibioModel(hb.model.ModelConfig.preset("ResNet-10"), vocabulary)
    model.save(tmp_path / "toy" / "model", card={"name": "toy", "licence": "mit"})
    assert main(["models"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["toy", "trained", "mit", "open", "here"]
    assert main(["models", "toy"]) == 0
    assert capsys.readouterr().out == hb.model.card("toy")
    assert main(["models", "toi"]) == 1
    assert "no model at toi" in capsys.readouterr().err
