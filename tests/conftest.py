"""What holds for every test: no network, no leaked settings, no global random state, no leaked figures."""

from __future__ import annotations

import ipaddress
import os
import random
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis
import numba
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
os.environ.setdefault("MPLBACKEND", "Agg")
SHARES_CORES = "PYTEST_XDIST_WORKER" in os.environ
if SHARES_CORES:  # processes that share the cores do not wait for each other's threads
    os.environ["OMP_NUM_THREADS"] = "1"
for name in ("HIBIOST_MODEL", "HIBIOST_PRECISION"):
    os.environ.pop(name, None)
if not os.environ.get("HIBIOST_DATA_DIR") and SHARED_DATA.is_dir():
    os.environ["HIBIOST_DATA_DIR"] = str(SHARED_DATA)

from hibiost.settings import settings  # noqa: E402 - the environment comes first

with suppress(ImportError):
    import rich.style  # noqa: F401 - draws from `random`, once, when some package first imports it

hypothesis.settings.register_profile("untimed", deadline=None)  # the first call of a kernel compiles it
hypothesis.settings.load_profile("untimed")

HER2ST = settings.cache / "her2st"
HAS_HER2ST = all((HER2ST / "data" / part).is_dir() for part in ("ST-cnts", "ST-imgs", "ST-spotfiles"))
NO_HER2ST = "her2st data not found: set HIBIOST_DATA_DIR"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip visibly what needs the her2st files where they are not."""
    if not HAS_HER2ST:
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(pytest.mark.skip(reason=NO_HER2ST))


@pytest.fixture(scope="session")
def her2st_dir() -> Path:
    """Folder of the her2st files."""
    if not HAS_HER2ST:
        pytest.skip(NO_HER2ST)
    return HER2ST


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Also in what was loaded before; numba's OpenMP sets torch's threads to its own number when it starts."""
    if SHARES_CORES:
        numba.set_num_threads(1)
        threadpool_limits(1)


@pytest.fixture(autouse=True)
def _restored_settings() -> Iterator[None]:
    with settings.override():
        yield


@pytest.fixture(autouse=True)
def _closed_figures() -> Iterator[None]:
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def _random_states() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - compared, never drawn from
    states = {"random": random.getstate(), "numpy.random": (kind, keys.tobytes(), *rest)}
    if "torch" in sys.modules:
        states["torch"] = sys.modules["torch"].get_rng_state().numpy().tobytes()
    return states


@pytest.fixture(autouse=True)
def _global_random_state(request: pytest.FixtureRequest) -> Iterator[None]:
    before = _random_states()
    yield
    after = _random_states()
    moved = [name for name, state in before.items() if after[name] != state]
    if moved and not request.node.get_closest_marker("global_rng"):
        pytest.fail(f"the global random state of {', '.join(moved)} was moved; draw from a generator of its own")


def _refuse_strangers(host: str | bytes | None) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    with suppress(ValueError):
        if not name or name == "localhost" or ipaddress.ip_address(name).is_loopback:
            return
    raise OSError(f"tests have no network, but {name!r} was asked for")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve, connect = socket.getaddrinfo, socket.socket.connect

    def guarded_resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_strangers(host)
        return resolve(host, *args, **kwargs)

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_strangers(address[0])
        connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", guarded_resolve)
    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
