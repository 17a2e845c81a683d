"""Rules that hold for the package as a whole: imports, the public surface, examples, the wheel."""

from __future__ import annotations

import ast
import doctest
import importlib.metadata
import inspect
import json
import re
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import hibiost as hb

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "anndata",
    "lightning",
    "matplotlib",
    "numba",
    "open_clip",
    "pandas",
    "scanpy",
    "spatialdata",
    "squidpy",
    "torch",
)
IMPORT_LIMIT_S = 0.3
NAMESPACES = [name for name in hb.__all__ if isinstance(getattr(hb, name), ModuleType)]


def public_objects() -> Iterator[tuple[str, Any]]:
    for namespace in NAMESPACES:
        for name in getattr(getattr(hb, namespace), "__all__", ()):
            yield f"{namespace}.{name}", getattr(getattr(hb, namespace), name)


def public_callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public functions and the public methods of public classes, bar those that a class inherits from elsewhere."""
    for name, value in public_objects():
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for method in vars(value):
                function = inspect.unwrap(getattr(value, method)) if callable(getattr(value, method)) else None
                if not method.startswith("_") and (inspect.isfunction(function) or inspect.ismethod(function)):
                    yield f"{name}.{method}", function


OBJECTS = dict(public_objects())
CALLABLES = dict(public_callables())
FUNCTIONS = {name: value for name, value in OBJECTS.items() if inspect.isfunction(value)}


# -- imports ---------------------------------------------------------------------------------------------------------


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


def import_times(code: str) -> tuple[dict[str, list[str]], str]:
    """Who imported what, as chains of modules from ``-X importtime``; and the slowest imports, to be read."""
    trace = run_python("-X", "importtime", "-c", code).stderr
    rows = re.findall(r"import time:\s+(\d+) \|\s+(\d+) \| ( *)(\S+)", trace)
    chains: dict[str, list[str]] = {}
    open_chain: list[str] = []
    for _, _, indent, module in reversed(rows):  # an importer is written after what it imports
        open_chain[len(indent) // 2 :] = [module]
        chains.setdefault(module, list(open_chain))
    slowest = sorted(rows, key=lambda row: -int(row[0]))[:8]
    return chains, ", ".join(f"{module} {int(own) / 1e6:.3f} s" for own, _, _, module in slowest)


def test_import_loads_nothing_heavy():
    chains, _ = import_times("import hibiost")
    guilty = [" > ".join(chains[module]) for module in HEAVY if module in chains]
    assert not guilty, "import hibiost loads:\n" + "\n".join(guilty)


def test_import_is_fast():
    code = "import time; t = time.perf_counter(); import hibiost; print(time.perf_counter() - t)"
    seconds = min(float(run_python("-c", code).stdout) for _ in range(5))
    assert seconds < IMPORT_LIMIT_S, f"{seconds:.2f} s; the slowest: {import_times('import hibiost')[1]}"


def test_a_guilty_import_is_named(tmp_path):
    (tmp_path / "outer.py").write_text("import inner\n")
    (tmp_path / "inner.py").write_text("import time; time.sleep(0.2); import colorsys\n")
    chains, slowest = import_times(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import outer")
    assert chains["colorsys"] == ["outer", "inner", "colorsys"]
    assert slowest.startswith("inner 0.2")


# -- the lazy table --------------------------------------------------------------------------------------------------


def test_lazy_table_all_dir_and_type_checking_are_in_step():
    tree = ast.parse((ROOT / "hibiost" / "__init__.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    assert sorted(alias.name for node in imports for alias in node.names) == hb.__all__ == sorted(hb.__all__)
    assert dir(hb) == sorted([*hb.__all__, "__version__"])
    assert all(getattr(hb, name) is not None for name in hb.__all__)


def test_unknown_attribute_is_refused():
    with pytest.raises(AttributeError, match="module 'hibiost' has no attribute 'plots'"):
        hb.plots  # noqa: B018


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_namespaces_list_what_they_offer(namespace):
    module = getattr(hb, namespace)
    assert module.__doc__
    assert module.__all__ == sorted(module.__all__)
    assert all(getattr(module, name).__module__.startswith("hibiost.") for name in module.__all__)


# -- signatures and docstrings ---------------------------------------------------------------------------------------


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]


def sections_of(docstring: str) -> dict[str, str]:
    parts = re.split(r"^(\S.*)\n-{3,}$", inspect.cleandoc(docstring), flags=re.MULTILINE)
    return {"Summary": parts[0].strip(), **dict(zip(parts[1::2], parts[2::2], strict=True))}


def documented(section: str | None) -> list[str]:
    """Names in a section; a type or default beside a name counts as part of it, since the signature tells those."""
    heads = [line for line in (section or "").splitlines() if line and not line.startswith(" ")]
    return [name.strip().lstrip("*") for head in heads for name in head.split(",")]


@pytest.mark.parametrize("name", CALLABLES)
def test_annotations(name):
    annotations = CALLABLES[name].__annotations__
    missing = [p.name for p in parameters_of(CALLABLES[name]) if p.name not in annotations]
    assert not missing, f"without annotation: {missing}"
    assert "return" in annotations, "what it returns is not annotated"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature(name):
    parameters = parameters_of(FUNCTIONS[name])
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    assert len(positional) <= 2, f"only the first two may be positional: {positional}"
    for copy in (p for p in parameters if p.name == "copy"):
        assert copy.default is False
        assert copy.kind is copy.KEYWORD_ONLY
        assert FUNCTIONS[name].__annotations__["return"].endswith("| None")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring(name):
    sections = sections_of(FUNCTIONS[name].__doc__ or "")
    assert sections["Summary"].split("\n")[0].endswith("."), "the summary is one line, with a full stop"
    assert documented(sections.get("Parameters")) == [p.name for p in parameters_of(FUNCTIONS[name])]
    if FUNCTIONS[name].__annotations__["return"] not in ("None", None):
        assert sections.keys() & {"Returns", "Yields"}, "what it returns is not documented"
    assert ">>> " in sections.get("Examples", ""), "no example"


@pytest.mark.parametrize("name", sorted(OBJECTS.keys() - FUNCTIONS.keys() | CALLABLES.keys() - FUNCTIONS.keys()))
def test_docstring_of_classes_and_methods(name):
    value = CALLABLES.get(name) or OBJECTS[name]
    sections = sections_of(vars(value).get("__doc__") or "" if inspect.isclass(value) else value.__doc__ or "")
    assert sections["Summary"].split("\n")[0].endswith("."), "the summary is one line, with a full stop"
    if "Parameters" in sections:
        assert documented(sections["Parameters"]) == [p.name for p in parameters_of(value)]


# -- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTS)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.DocTestFinder().find(OBJECTS[name], name, module=False)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    report: list[str] = []
    for example in found:
        runner.run(example, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_documentation_exist(page):
    for dotted in sorted(set(re.findall(r"\b(?:hb|hibiost)\.((?:[a-z_]+\.)+\w+)", page.read_text()))):
        value: Any = hb
        for part in dotted.split("."):
            assert hasattr(value, part), f"hb.{dotted} does not exist"
            value = getattr(value, part)


def run_notebook(name: str) -> dict[str, Any]:
    """The names that the cells of a tutorial leave behind."""
    notebook = json.loads((ROOT / "tutorials" / name).read_text())
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), name, "exec"), names)
    return names


@pytest.mark.slow
def test_quickstart_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    slide = run_notebook("quickstart.ipynb")["slide"]
    assert slide.obsm["predicted_expression"].shape == (200, 300)
    assert set(slide.obs["cluster"]) <= set("0123")


@pytest.mark.slow
def test_levels_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_notebook("levels.ipynb")
    tissue, info = names["tissue"], names["model"].training_info
    assert list(tissue.obsm["region_history"]) == ["0", "4", "7", "10"]
    for term in ("spot", "pathway", "region"):
        entries = [entry[term] for entry in info["history"] if term in entry]
        assert entries[-1] < entries[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Couldn't detect a suitable IP address:RuntimeWarning")  # tests have no network
@pytest.mark.global_rng
def test_slides_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = run_notebook("slides.ipynb")
    corpus, scan = names["corpus"], names["scan"]
    assert corpus.index["usable"].tolist() == [True, True, True, True, False]
    assert corpus.problems["slide"].tolist() == ["tissue_2", "tissue_2", "tissue_4"]
    sentences = [[adata.obsm["gene_sentence"].tolist() for adata in names[each]] for each in ("written", "parallel")]
    assert len(sentences[0]) == 3
    assert sentences[0] == sentences[1]
    glass = (scan.obsm["spatial"] < [500, 0]) | (scan.obsm["spatial"] > [np.inf, len(names["pixels"])])
    assert scan.n_obs > 100
    assert not glass.any()
    assert scan.obsm["predicted_expression"].shape == (scan.n_obs, 300)


def test_reference_lists_every_namespace():
    listed = set(re.findall(r"^   (\w+)$", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE))
    assert listed >= set(NAMESPACES)


# -- version, types, wheel -------------------------------------------------------------------------------------------


def test_version_is_that_of_the_metadata():
    assert hb.__version__ == importlib.metadata.version("hibiost")


def test_wheel_holds_the_package_only(tmp_path):
    pytest.importorskip("hatchling", reason="hatchling is not installed: the wheel is not built")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"hibiost", f"hibiost-{hb.__version__}.dist-info"}
    paths = [path.relative_to(ROOT) for path in (ROOT / "hibiost").rglob("*") if path.is_file()]
    files = {str(path) for path in paths if "__pycache__" not in path.parts}
    assert {name for name in names if name.startswith("hibiost/")} == files
    assert "hibiost/py.typed" in files


# -- the guards of conftest.py ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["example.org", "192.0.2.1"])
def test_tests_have_no_network(host):
    with pytest.raises(OSError, match=f"tests have no network, but '{host}'"):
        socket.create_connection((host, 80), timeout=1)


def test_tests_may_talk_to_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()


def test_moved_global_random_state_is_seen(tmp_path):
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_draws.py").write_text(
        "import random\nimport numpy as np\n"
        "def test_a(): random.random()\ndef test_b(): np.random.random()\ndef test_c(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(tmp_path)]
    report = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert "3 passed, 2 errors" in report
    assert "the global random state of random was moved" in report
    assert "the global random state of numpy.random was moved" in report
