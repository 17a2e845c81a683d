from __future__ import annotations

import pickle

import pytest

from hibiost import errors
from hibiost.errors import HibiostError, MissingSlotError, nearest


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("DataError", ValueError),
        ("MissingSlotError", KeyError),
        ("ImageError", OSError),
        ("DownloadError", OSError),
        ("ModelError", ValueError),
    ],
)
def test_errors_can_be_caught_as_ours_and_as_the_builtin(name, builtin):
    error = getattr(errors, name)("what was found; what mends it")
    assert isinstance(error, HibiostError)
    assert isinstance(error, builtin)
    assert str(error) == "what was found; what mends it"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_missing_slot_keeps_the_message_unquoted():
    with pytest.raises(MissingSlotError, match=r"^no obsm\['x'\]; call tl\.embed first\.$"):
        raise MissingSlotError("no obsm['x']; call tl.embed first.")


@pytest.mark.parametrize(
    ("name", "known", "phrase"),
    [
        ("IGLL55", ["IGLL5", "ERBB2"], " Did you mean 'IGLL5'?"),
        ("erbb2", ["IGLL5", "ERBB2"], " Did you mean 'ERBB2'?"),
        ("ERBB", ["ERBB2", "ERBB3", "ERBB4", "TP53"], " Did you mean 'ERBB4' or 'ERBB3' or 'ERBB2'?"),
        ("zzz", ["IGLL5", "ERBB2"], ""),
        ("anything", [], ""),
    ],
)
def test_nearest_names(name, known, phrase):
    assert nearest(name, known) == phrase
