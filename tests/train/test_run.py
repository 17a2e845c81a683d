"""A run that is stopped, killed or fails goes on to the weights of one that was not."""

import errno
import importlib.util
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import lightning
import pytest
import torch
from toy import trained

from hibiost.errors import DataError, RunError
from hibiost.train import Engine, Run
from hibiost.train.run import SafeCheckpoints

TOY = Path(__file__).with_name("toy.py")
OPTIONS = {"tower": "vit", "epochs": 5}
STEPS = 15


@pytest.fixture(scope="module")
def whole():
    """The run that nothing happens to."""
    return trained(**OPTIONS)


def same(found, expected):
    assert found["history"] == expected["history"]
    assert found["renewals"] == expected["renewals"]
    assert found["losses"] == expected["losses"][STEPS - len(found["losses"]) :]
    for name, weights in expected["weights"].items():
        assert torch.equal(found["weights"][name], weights), name


class At(lightning.Callback):
    """Do something after a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            self.action(pl_module)


def steps_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def send(number):
    return lambda _: os.kill(os.getpid(), number)


def test_stopped_again_and_again(whole, tmp_path, caplog):
    """In an epoch, at its end, before regions and after: the same batches, augmentations, regions and rates follow."""
    for step in (1, 3, 7, 8, 12):
        with pytest.raises(SystemExit) as stopped:
            trained(**OPTIONS, run=tmp_path, callbacks=[At(step, send(signal.SIGTERM))])
        assert stopped.value.code == 128 + signal.SIGTERM
        assert f"SIGTERM: stopped after step {step} of 15" in caplog.text
    same(trained(**OPTIONS, run=tmp_path), whole)
    entries = steps_of(tmp_path)
    assert [entry["step"] for entry in entries if entry["event"] == "epoch"] == [3, 6, 9, 12, 15]
    assert [entry["epoch"] for entry in entries if entry["event"] == "regions"] == [2, 4]


def test_an_interrupt_keeps_what_was_done(whole, tmp_path):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        trained(**OPTIONS, run=tmp_path, callbacks=[At(4, send(signal.SIGINT))])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    again = trained(**OPTIONS, run=tmp_path)
    assert len(again["losses"]) == STEPS - 4
    same(again, whole)


def kill_after(seconds, number, metrics):
    """Kill a process some time after it has written metrics, unless it has ended by itself."""
    before = metrics.stat().st_size if metrics.exists() else 0
    with suppress(ProcessLookupError):
        while not metrics.exists() or metrics.stat().st_size <= before:
            os.kill(number, 0)
            time.sleep(0.01)
        time.sleep(seconds)
        os.kill(number, signal.SIGKILL)


def test_killed_at_random_moments(tmp_path):
    """SIGKILL, whatever the process is doing: writing a checkpoint most of the time."""
    chance = random.Random()
    options = {
        **OPTIONS,
        "epochs": 8,
        "run": str(tmp_path / "run"),
        "engine": {"checkpoint_minutes": 0, "log_every": 1},
    }
    command = [sys.executable, str(TOY), "in_turn", json.dumps([[3, str(tmp_path / "out.pt"), options]])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    metrics, moments = tmp_path / "run" / "metrics.jsonl", []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as starter:
        for line in starter.stdout:
            if len(moments) < 2:
                moments.append(chance.uniform(0, 0.5))
                kill_after(moments[-1], int(line), metrics)
    assert starter.returncode == 0, moments
    found, threads = torch.load(tmp_path / "out.pt", weights_only=True), torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: sums of floats depend on it
    try:
        expected = trained(**{**OPTIONS, "epochs": 8})
    finally:
        torch.set_num_threads(threads)
    assert found["history"] == expected["history"], moments
    for name, weights in expected["weights"].items():
        assert torch.equal(found["weights"][name], weights), (name, moments)
    steps = [entry["step"] for entry in steps_of(tmp_path / "run") if entry["event"] == "step"]
    assert steps == list(range(1, 25))
    assert not list((tmp_path / "run").glob("*.part"))


def test_a_full_disk_stops_and_keeps_the_last_checkpoint(whole, tmp_path, monkeypatch):
    save, saved = torch.save, []

    def full(*args, **kwargs):
        saved.append(args)
        if len(saved) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=r"checkpoint\.pt was not written: .*No space left .*last one is kept"):
        trained(**OPTIONS, run=tmp_path)
    monkeypatch.undo()
    assert SafeCheckpoints().load_checkpoint(tmp_path / "checkpoint.pt")["global_step"] == 6
    same(trained(**OPTIONS, run=tmp_path), whole)


def test_weights_that_are_no_numbers_are_never_kept(whole, tmp_path):
    def spoil(task):
        with torch.no_grad():
            task.model.visual.trunk.pos_embed[0, 0, 0] = float("nan")

    with pytest.raises(RunError, match="weights are no numbers after step 6; lower the recipe's lr"):
        trained(**OPTIONS, run=tmp_path, callbacks=[At(6, spoil)])
    assert SafeCheckpoints().load_checkpoint(tmp_path / "checkpoint.pt")["global_step"] == 3
    same(trained(**OPTIONS, run=tmp_path), whole)


class Touch:
    """What a file with code in it would do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("damage", ["cut", "empty", "code"])
def test_checkpoints_that_cannot_be_read(tmp_path, damage):
    path, mark = tmp_path / "checkpoint.pt", tmp_path / "executed"
    torch.save({"global_step": 1, "weights": torch.zeros(1000)}, path)
    content = {"cut": path.read_bytes()[:700], "empty": b"", "code": pickle.dumps(Touch(mark))}[damage]
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"checkpoint\.pt cannot be read .*Remove it"):
        trained(**OPTIONS, run=tmp_path)
    assert not mark.exists()


# -- the folder ------------------------------------------------------------------------------------------------------


def test_all_differences_are_listed(tmp_path):
    run = Run(tmp_path)
    values = {"recipe": {"lr": 1e-3, "epochs": 3, "betas": (0.9, 0.95)}, "seed": 0}
    run.check("configuration", values, write=True, mend="Mend.")
    run.check("configuration", values, write=True, mend="Mend.")
    other = {"recipe": {"lr": 1e-2, "betas": (0.9, 0.95), "shift": 0.1}, "seed": 0}
    with pytest.raises(RunError) as refused:
        run.check("configuration", other, write=True, mend="Mend.")
    message = str(refused.value)
    for part in ("recipe.lr was 0.001, now 0.01", "recipe.epochs is missing (was 3)", "recipe.shift is new (0.1)"):
        assert part in message
    assert message.endswith("Mend.")
    run.check("data", {"a": 1}, write=False, mend="")
    assert set(json.loads(run.description.read_text())) == {"format_version", "configuration"}


def test_folders_that_hold_something_else(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        Run(tmp_path / "file")
    run = Run(tmp_path / "run")
    run.description.write_text("{")
    with pytest.raises(RunError, match=r"run\.json describes no run"):
        run.check("data", {}, write=True, mend="")
    run.description.write_text('{"format_version": 9}')
    with pytest.raises(RunError, match="format 9, this hibiost knows 1"):
        run.check("data", {}, write=True, mend="")
    run.description.unlink()
    run.checkpoint.write_bytes(b"")
    with pytest.raises(RunError, match=r"but no run\.json"):
        run.check("data", {}, write=True, mend="")


def test_metrics_after_the_checkpoint_are_taken_back(tmp_path):
    run = Run(tmp_path)
    run.metrics.write_text("".join(json.dumps({"event": "step", "step": step}) + "\n" for step in range(5)) + '{"ev')
    run.cut_metrics(2)
    assert [entry["step"] for entry in steps_of(tmp_path)] == [0, 1, 2]


# -- the engine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": 2}, r"no 'workers'.*Did you mean 'n_workers'"),
        ({"n_workers": -1}, "n_workers is -1; expected a whole number of 0 or more"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"compile": "yes"}, "compile is 'yes'"),
        ({"checkpoint_minutes": -1}, "checkpoint_minutes is -1"),
        ({"loggers": "tensorbord"}, "loggers is 'tensorbord'; expected one of .*Did you mean 'tensorboard'"),
        ({"unreadable": "ignore"}, "unreadable is 'ignore'; expected one of"),
    ],
)
def test_an_engine_that_is_none(values, message):
    with pytest.raises(DataError, match=message):
        Engine.of(values)


def test_an_engine_as_json():
    engine = Engine.of({"micro_batch": 8, "loggers": ["wandb"]})
    assert Engine.of(json.loads(json.dumps(engine.to_dict()))) == engine == Engine.of(engine)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_loggers(tmp_path, name):
    """The loggers of Lightning, where their package is there; else how to get it."""
    if importlib.util.find_spec(name) is None:
        with pytest.raises(RunError, match=f"{name}.*pip install {name}"):
            trained(tower="vit", epochs=1, run=tmp_path, engine={"loggers": [name]})
    else:
        trained(tower="vit", epochs=1, run=tmp_path, engine={"loggers": [name]})
        assert list((tmp_path / name).iterdir())
