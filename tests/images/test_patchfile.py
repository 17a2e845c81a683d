from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from PIL import Image

from hibiost.errors import DataError, ImageError
from hibiost.images import PatchFile, iter_patches, open_image, write_patches
from hibiost.images.patchfile import _Content

N, SIDE = 20, 8
VLEN = h5py.string_dtype()
PATCHES = np.random.default_rng(0).integers(0, 256, (N, SIDE, SIDE, 3), np.uint8)
COORDS = np.random.default_rng(1).integers(-5, 500, (N, 2))
NAMES = [f"{i}x{i + 1}" for i in range(N - 1)] + ["Zürich-1"]
SPOTS = {"coords": COORDS, "barcodes": NAMES, "size": SIDE, "window": 11.5}


def batches(start: int, step: int = 6):
    for first in range(start, N, step):
        yield PATCHES[first : first + step]


def hest_file(path, patches=PATCHES, coords=COORDS, names=NAMES, *, kind=VLEN, column=True, **attributes):
    """A file of the documented layout, written without the package."""
    with h5py.File(path, "w") as file:
        file.create_dataset("img", data=patches, chunks=(1, *patches.shape[1:]), maxshape=(None, *patches.shape[1:]))
        file.create_dataset("coords", data=coords, chunks=(1, 2), maxshape=(None, 2))
        table = np.array([name.encode() for name in names], dtype=kind if kind.kind == "S" else object)
        file.create_dataset("barcode", data=table[:, None] if column else table, dtype=kind)
        file["img"].attrs.update(attributes)
    return path


# ---- reading


def test_documented_file(tmp_path):
    attributes = {"patch_size_src": 12, "patch_size_target": SIDE, "downsample": 1.4375, "pixel_size": 0.25}
    with PatchFile(hest_file(tmp_path / "a.h5", **attributes)) as file:
        assert (file.size, file.window, file.pixel_size, len(file)) == (SIDE, 11.5, 0.25, N)
        assert list(file.barcodes) == NAMES
        np.testing.assert_array_equal(file.coords, COORDS)
        assert file.rows(["3x4", "nowhere", "0x1", "Zürich-1"]).tolist() == [3, -1, 0, N - 1]
        np.testing.assert_array_equal(file.read([7, 0, 7, 19]), PATCHES[[7, 0, 7, 19]])
        assert file.read([]).shape == (0, SIDE, SIDE, 3)


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("kind", [h5py.string_dtype(), np.dtype("S12"), h5py.string_dtype("ascii")])
def test_barcodes_of_any_kind(tmp_path, kind, column):
    names = [name.replace("ü", "u") for name in NAMES]
    with PatchFile(hest_file(tmp_path / "a.h5", names=names, kind=kind, column=column, downsample=1.0)) as file:
        assert list(file.barcodes) == names


@pytest.mark.parametrize(
    ("attributes", "window"),
    [
        ({"downsample": np.array([2.0])}, 16.0),
        ({"patch_size_src": 17}, 17.0),
        ({"patch_size": 12, "factor": 2 / 3}, 12.0),
        ({"downsample": 0.0, "patch_size_src": 9}, 9.0),
        ({}, None),
    ],
)
def test_window_of_older_files(tmp_path, attributes, window):
    with PatchFile(hest_file(tmp_path / "a.h5", **attributes)) as file:
        assert (file.window, file.pixel_size) == (window, None)


def test_no_such_file(tmp_path):
    with pytest.raises(ImageError, match=r"no patch file .*nowhere\.h5; check the path"):
        PatchFile(tmp_path / "nowhere.h5")
    with pytest.raises(ImageError, match="is a folder; expected a patch file"):
        PatchFile(tmp_path)


@pytest.mark.parametrize("content", ["empty", "html", "truncated", "half"])
def test_damaged_file(tmp_path, content):
    path = hest_file(tmp_path / "a.h5", downsample=1.0)
    data = path.read_bytes()
    cut = {"empty": b"", "html": b"<!DOCTYPE html><html>404", "truncated": data[:-100], "half": data[: len(data) // 2]}
    path.write_bytes(cut[content])
    with pytest.raises(ImageError, match=r"a\.h5 cannot be read as a patch file .*truncated, damaged.*extract_patches"):
        PatchFile(path)


def test_files_of_another_layout(tmp_path):
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = np.ones((3, 4)), np.ones((3, 2))
    with pytest.raises(ImageError, match=r"holds no 'img' .*'features'.*HEST's layout"):
        PatchFile(path)
    with pytest.raises(ImageError, match=r"img is float64 of shape .*expected uint8"):
        PatchFile(hest_file(tmp_path / "b.h5", patches=PATCHES / 255))
    with pytest.raises(ImageError, match="20 patches, 19 barcodes"):
        PatchFile(hest_file(tmp_path / "c.h5", names=NAMES[:-1]))
    with pytest.raises(ImageError, match=r"1 barcodes occur more than once, such as '0x1'"):
        PatchFile(hest_file(tmp_path / "d.h5", names=[*NAMES[:-1], "0x1"]))
    for leftover in tmp_path.iterdir():
        leftover.unlink()  # nothing keeps them open


# ---- patches out of a file

IMAGE = np.random.default_rng(2).integers(0, 256, (200, 300, 3), np.uint8)
CENTRES = np.random.default_rng(3).uniform(40, 160, (7, 2))


def stored(path, *, window, size):
    source = open_image(IMAGE)
    corners = np.floor(CENTRES - window / 2 + 0.5)
    patches = np.concatenate(list(iter_patches(source, CENTRES, window=window, size=size)))
    spots = {"coords": corners, "barcodes": list("abcdefg"), "size": size, "window": window}
    write_patches(path, lambda start: [patches[start:]], **spots)
    return PatchFile(path)


@pytest.mark.parametrize(("window", "size"), [(32, 32), (20, 20), (20, 10), (25.5, 16), (32.1, 32)])
def test_full_resolution_patches_stand_for_the_image(tmp_path, window, size):
    """Whole or cut out, a patch of the image's own pixels is what the image gives."""
    rows = np.array([6, 0, 3])
    with stored(tmp_path / "a.h5", window=32, size=32) as file:
        found = np.concatenate(list(file.iter_patches(rows, CENTRES[rows], window=window, size=size, batch_size=2)))
    window = min(window, 32)
    expected = np.concatenate(list(iter_patches(open_image(IMAGE), CENTRES[rows], window=window, size=size)))
    if window == 25.5:  # cut at fractions of a pixel: the filter does not see beyond the stored patch
        assert np.abs(found[:, 1:-1, 1:-1].astype(int) - expected[:, 1:-1, 1:-1]).max() <= 1
    else:
        np.testing.assert_array_equal(found, expected)


def test_reduced_patches_are_resized(tmp_path):
    with stored(tmp_path / "a.h5", window=48, size=24) as file:
        assert file.window == 48
        whole = next(file.iter_patches(np.array([2]), CENTRES[[2]], window=48.2, size=12))[0]
        kept = file.read([2])[0]
        np.testing.assert_array_equal(
            whole, np.asarray(Image.fromarray(kept).resize((12, 12), Image.Resampling.BICUBIC))
        )
        middle = next(file.iter_patches(np.array([2]), CENTRES[[2]], window=24, size=12))[0]
        assert any(np.array_equal(middle, kept[y : y + 12, x : x + 12]) for y in (5, 6, 7) for x in (5, 6, 7))
        with pytest.raises(DataError, match=r"holds patches of 48\.0 pixels; expected at least 50"):
            file.iter_patches(np.array([2]), CENTRES[[2]], window=50, size=12)


def test_other_coordinates_cut_the_middle(tmp_path):
    """Older files hold (y, x) of the centres."""
    path = hest_file(tmp_path / "a.h5", coords=COORDS[:, ::-1], downsample=1.0)
    with PatchFile(path) as file:
        found = next(file.iter_patches(np.arange(N), COORDS, window=4, size=4, batch_size=N))
    np.testing.assert_array_equal(found, PATCHES[:, 2:6, 2:6])


# ---- writing


def test_written_file_by_h5py(tmp_path):
    path = tmp_path / "größe.h5"
    assert write_patches(path, batches, **SPOTS, pixel_size=0.4, name="C2") == N
    assert os.listdir(tmp_path) == ["größe.h5"]
    with h5py.File(path, "r") as file:
        assert sorted(file) == ["barcode", "coords", "img"]
        assert file["img"].chunks == (1, SIDE, SIDE, 3)
        assert file["img"].dtype == np.uint8
        np.testing.assert_array_equal(file["img"][:], PATCHES)
        np.testing.assert_array_equal(file["coords"][:], COORDS)
        assert file["coords"].dtype.kind == "i"
        assert file["barcode"].shape == (N, 1)
        assert [name.decode() for name in file["barcode"][:, 0]] == NAMES
        assert dict(file["img"].attrs) == {
            "patch_size_src": 12,
            "patch_size_target": SIDE,
            "downsample": 11.5 / SIDE,
            "pixel_size": 0.4,
            "name": "C2",
        }
    assert write_patches(path, batches, **SPOTS, pixel_size=0.4) == 0  # there already


def never(start: int):
    raise AssertionError("asked for patches")


def test_a_complete_file_is_left_alone(tmp_path):
    path = tmp_path / "a.h5"
    write_patches(path, batches, **SPOTS)
    before = path.read_bytes()
    assert write_patches(path, never, **SPOTS) == 0
    others = ({"window": 12.0}, {"barcodes": NAMES[::-1]}, {"coords": COORDS + 1}, {"pixel_size": 1.0})
    for other in others:
        with pytest.raises(DataError, match=r"there already and holds other patches.*overwrite=True"):
            write_patches(path, never, **{**SPOTS, **other})
    assert path.read_bytes() == before
    assert write_patches(path, batches, **{**SPOTS, "window": 12.0}, overwrite=True) == N
    with PatchFile(path) as file:
        assert file.window == 12.0


def failing(start: int):
    yield PATCHES[start : start + 6]
    yield PATCHES[start + 6 : start + 12]
    raise ImageError("the image ends here")


def test_interrupted_file_is_continued(tmp_path):
    path, part = tmp_path / "a.h5", tmp_path / "a.h5.part"
    with pytest.raises(ImageError, match="the image ends here"):
        write_patches(path, failing, **SPOTS)
    assert os.listdir(tmp_path) == ["a.h5.part"]
    asked = []

    def rest(start: int):
        asked.append(start)
        return batches(start)

    assert write_patches(path, rest, **SPOTS) == N - 12
    assert asked == [12]
    with PatchFile(path) as file:
        np.testing.assert_array_equal(file.read(range(N)), PATCHES)
        np.testing.assert_array_equal(file.coords, COORDS)
    for unfit in ({"window": 12.0}, {"barcodes": NAMES[::-1]}, {"coords": COORDS[::-1]}):
        path.unlink()
        with pytest.raises(ImageError):
            write_patches(path, failing, **SPOTS)
        assert write_patches(path, batches, **{**SPOTS, **unfit}) == N
    path.unlink()
    part.write_bytes(b"<html>")
    assert write_patches(path, batches, **SPOTS) == N


def test_another_process_is_writing(tmp_path):
    path = tmp_path / "a.h5"
    with pytest.raises(ImageError, match="ends here"):
        write_patches(path, failing, **SPOTS)
    with h5py.File(f"{path}.part", "r+"):
        code = (
            "import h5py, sys\nfrom hibiost.errors import ImageError\nfrom tests_patchfile import *\n"
            "try:\n    write_patches(sys.argv[1], batches, **SPOTS)\n"
            "except ImageError as error:\n    print(error)"
        )
        found = python(code, str(path))
    assert "is being written by another process" in found.stdout, found.stderr
    assert write_patches(path, batches, **SPOTS) == N - 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"barcodes": NAMES[1:]}, r"19 barcodes and coords of shape \(20, 2\)"),
        ({"barcodes": [NAMES[1], *NAMES[1:]]}, "1 of 20 barcodes occur more than once"),
        ({"size": 0}, "size is 0"),
        ({"window": np.nan}, "window nan"),
        ({"barcodes": [], "coords": np.ones((0, 2))}, "0 barcodes"),
    ],
)
def test_refused_before_writing(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        write_patches(tmp_path / "a.h5", batches, **{**SPOTS, **change})
    assert not os.listdir(tmp_path)


def test_patches_that_do_not_fit(tmp_path):
    path = tmp_path / "a.h5"
    with pytest.raises(DataError, match="12 patches for 20 barcodes"):
        write_patches(path, lambda start: [PATCHES[start:12]], **SPOTS)
    with pytest.raises(DataError, match=r"shape \(8, 4, 4, 3\) after 12 of 20"):
        write_patches(path, lambda start: [PATCHES[start:, :4, :4]], **SPOTS)
    with pytest.raises(DataError, match="after 12 of 20"):
        write_patches(path, lambda start: [PATCHES], **SPOTS)
    assert not path.exists()


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere/a\.h5\.part cannot be written"):
        write_patches(tmp_path / "nowhere" / "a.h5", batches, **SPOTS)


# ---- killed, and on a full disk

BIG = {"coords": np.arange(2000).reshape(1000, 2), "barcodes": list(map(str, range(1000))), "size": 64, "window": 64}


def big_batches(start: int, pause: float = 0.0):
    for first in range(start, 1000, 10):
        yield np.stack(
            [np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8) for i in range(first, first + 10)]
        )
        time.sleep(pause)


def python(code: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", IMPORTS + code, *arguments], capture_output=True, text=True, **options)


IMPORTS = (
    "import importlib.util, sys\n"
    f"spec = importlib.util.spec_from_file_location('tests_patchfile', {__file__!r})\n"
    "module = importlib.util.module_from_spec(spec)\nsys.modules['tests_patchfile'] = module\n"
    "spec.loader.exec_module(module)\n"
)


def test_killed_at_any_moment(tmp_path):
    """The name is taken by complete files only, and what a killed process leaves is continued to the same file."""
    path = tmp_path / "a.h5"
    code = "from tests_patchfile import *\nprint('go', flush=True)\nwrite_patches(sys.argv[1], big_batches, **BIG)"
    delays = np.random.default_rng().uniform(0, 0.35, 4)
    kept = []
    for delay in delays:
        process = subprocess.Popen([sys.executable, "-c", IMPORTS + code, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert set(os.listdir(tmp_path)) <= {"a.h5", "a.h5.part"}
        if path.exists():
            break
        kept.append(
            _Content(BIG["coords"], np.array(BIG["barcodes"], object), 64, 64.0, None, None).written(f"{path}.part")
        )
        assert not os.path.exists(f"{path}.part") or kept[-1] is not None, delays
    write_patches(path, big_batches, **BIG)
    assert os.listdir(tmp_path) == ["a.h5"]
    numbers = [number for number in kept if number is not None]
    assert numbers == sorted(numbers), (delays, kept)
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["img"][:], np.concatenate(list(big_batches(0))))
        np.testing.assert_array_equal(file["coords"][:], BIG["coords"])
        assert [name.decode() for name in file["barcode"][:, 0]] == BIG["barcodes"]


def test_full_disk(tmp_path):
    """A limit on the size of files stands for the end of the disk: no place for the file, or none for its pixels."""
    path = tmp_path / "a.h5"
    code = (
        "from tests_patchfile import *\n"
        "def limit(size):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))\n"
        "def limited(start):\n"
        "    for number, batch in enumerate(big_batches(start)):\n"
        "        if number == 5:\n"
        "            limit(1000)\n"
        "        yield batch\n"
        "for size in (1000, resource.RLIM_INFINITY):\n"
        "    limit(size)\n"
        "    try:\n        write_patches(sys.argv[1], limited, **BIG)\n"
        "    except OSError as error:\n        print(type(error).__name__, error)"
    )
    found = python(code, str(path))
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("ImageError") == found.stdout.count("free some space") == 2, found.stdout
    assert os.listdir(tmp_path) == ["a.h5.part"]
    assert write_patches(path, big_batches, **BIG) == 950
    with PatchFile(path) as file:
        np.testing.assert_array_equal(file.read(range(1000)), np.concatenate(list(big_batches(0))))


def test_no_place_for_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    with pytest.raises(ImageError, match=r"the patches take 3,840 bytes, 100 are free.*free some space"):
        write_patches(tmp_path / "a.h5", batches, **SPOTS)
    assert not os.listdir(tmp_path)


class Usage:
    free = 100


assert resource  # for the processes above
