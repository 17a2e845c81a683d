from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hibiost as hb
from hibiost.settings import Settings, logger


def in_fresh_interpreter(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HIBIOST_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("first", ["hibiost.settings", "hibiost.inputs"])
def test_settings_are_the_object_and_not_its_module(first):
    done = in_fresh_interpreter(f"import {first}, hibiost; hibiost.settings.progress = 'no'; print(hibiost.settings)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Settings(")
    assert "progress=False" in done.stdout


def test_environment_variables_are_read():
    done = in_fresh_interpreter(
        "from hibiost.settings import settings as s; "
        "print(s.data_dir, s.cache, s.model, s.precision, s.progress, s.verbosity)",
        HIBIOST_DATA_DIR="/some/data",
        HIBIOST_MODEL="/some/model",
        HIBIOST_PRECISION="Auto",
        HIBIOST_PROGRESS="0",
        HIBIOST_VERBOSITY="ERROR",
    )
    assert done.stdout.split() == ["/some/data", "/some/data", "/some/model", "auto", "False", "error"]


def test_defaults_without_environment():
    done = in_fresh_interpreter(
        "from hibiost.settings import settings as s; "
        "print(s.data_dir, s.model, s.precision, s.progress, s.verbosity, s.cache.name)",
        HIBIOST_DATA_DIR="",
    )
    assert done.stdout.split() == ["None", "hibiost-mini", "float32", "True", "info", "hibiost"]


@pytest.mark.parametrize(
    ("variable", "message"),
    [("HIBIOST_PROGRESS", "settings.progress is 'maybe'"), ("HIBIOST_VERBOSITY", "settings.verbosity is 'maybe'")],
)
def test_a_bad_environment_variable_is_named(variable, message):
    done = in_fresh_interpreter("import hibiost", **{variable: "maybe"})
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize(
    ("value", "expected"), [("Yes", True), ("on", True), (1, True), (True, True), ("off", False), (0, False)]
)
def test_progress_takes_what_means_yes_or_no(value, expected):
    hb.settings.progress = value
    assert hb.settings.progress is expected


def test_paths_are_expanded_and_can_be_unset(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    hb.settings.data_dir = "~/data"
    assert hb.settings.data_dir == Path("/home/someone/data") == hb.settings.cache
    hb.settings.data_dir = None
    assert hb.settings.cache.name == "hibiost"
    hb.settings.model = Path("a/model")
    assert hb.settings.model == str(Path("a/model"))
    hb.settings.model = None
    assert hb.settings.model == "hibiost-mini"


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("progress", "maybe", ValueError, "settings.progress is 'maybe'; expected True or False"),
        ("precision", "half", ValueError, "settings.precision is 'half'; expected 'float32', 'bfloat16' or 'auto'"),
        ("verbosity", "loud", ValueError, "settings.verbosity is 'loud'; expected 'debug', 'info'"),
        (
            "modle",
            "x",
            AttributeError,
            "no setting 'modle'; the settings are data_dir, model, precision, progress, ",
        ),
    ],
)
def test_what_is_no_setting_is_refused_and_nothing_changes(name, value, error, message):
    before = vars(hb.settings).copy()
    with pytest.raises(error, match=message):
        setattr(hb.settings, name, value)
    with pytest.raises(error, match=message), hb.settings.override(model="other", **{name: value}):
        pytest.fail("the block ran")
    assert vars(hb.settings) == before


def test_override_lasts_for_its_block_even_when_it_fails():
    hb.settings.verbosity = "warning"

    def fail_inside() -> None:
        with hb.settings.override(verbosity="debug", model="m") as inside:
            assert (inside.verbosity, inside.model, logger.level) == ("debug", "m", logging.DEBUG)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert (hb.settings.verbosity, hb.settings.model, logger.level) == ("warning", "hibiost-mini", logging.WARNING)


def test_messages_go_to_the_stderr_of_the_moment(capsys):
    hb.settings.verbosity = "info"
    logger.info("embedded %d spots", 12)
    logger.debug("not told")
    assert capsys.readouterr().err == "embedded 12 spots\n"


def test_every_setting_is_documented():
    assert all(f"\n    {name}\n" in Settings.__doc__ for name in vars(hb.settings))
