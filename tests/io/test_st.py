from __future__ import annotations

import csv
import gzip
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse

import hibiost as hb
from hibiost.errors import DataError, ImageError
from hibiost.settings import logger, settings

XFUSE = Path(settings.cache) / "visium_fixtures/xfuse/tests/data/files/st"
HER2ST = Path(settings.cache) / "her2st/data"
GENES = ["ERBB2", "ACTB", "GAPDH"]
COUNTS = np.array([[3, 0, 1], [0, 5, 0], [1, 1, 0], [0, 0, 7]])
PLACES = [(1, 1), (2, 1), (1, 2), (2, 2)]
PIXELS = [(50, 60), (150, 60), (50, 160), (150, 160)]


def write(path: Path, rows: list[list[object]], separator: str = "\t") -> Path:
    text = "".join(separator.join(map(str, row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def table(path: Path, ids: list[str] | None = None, *, turned: bool = False, separator: str = "\t") -> Path:
    ids = ids or [f"{x}x{y}" for x, y in PLACES]
    rows = [["", *GENES], *([name, *row] for name, row in zip(ids, COUNTS.tolist(), strict=True))]
    return write(path, [list(row) for row in zip(*rows, strict=True)] if turned else rows, separator)


def spot_file(path: Path, extra: dict[str, list[object]] | None = None, separator: str = "\t") -> Path:
    columns = {"x": [x for x, _ in PLACES], "y": [y for _, y in PLACES]} | (extra or {})
    columns |= {"pixel_x": [x for x, _ in PIXELS], "pixel_y": [y for _, y in PIXELS]}
    return write(path, [list(columns), *map(list, zip(*columns.values(), strict=True))], separator)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return table(tmp_path / "S1.tsv"), spot_file(tmp_path / "spots.tsv")


@pytest.fixture
def messages(monkeypatch, caplog):
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, "hibiost")
    return caplog


def check(adata) -> None:
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
    assert list(adata.var_names) == GENES
    np.testing.assert_array_equal(adata.obsm["spatial"], PIXELS)
    assert adata.obs["array_col"].tolist() == [x for x, _ in PLACES]
    assert adata.obs["array_row"].tolist() == [y for _, y in PLACES]


# ---- what is read


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("name", "separator"), [("S1.tsv", "\t"), ("S1.csv", ","), ("S1.tsv.gz", "\t")])
def test_tables(tmp_path, turned, name, separator):
    counts = table(tmp_path / name, turned=turned, separator=separator)
    adata = hb.io.read_st(counts, spot_file(tmp_path / "spots.csv", separator=","))
    check(adata)
    assert list(adata.obs_names) == ["1x1", "2x1", "1x2", "2x2"]
    assert list(adata.obs["library_id"].cat.categories) == ["S1"]
    assert list(adata.uns["spatial"]) == ["S1"]
    assert adata.obsm["spatial"].dtype == np.float64


NEW = [(0.97, 1.02), (2.013, 1.0), (1.0, 1.98), (2.0, 2.04)]


@pytest.mark.parametrize(
    "ids",
    [
        ["1_1", "2_1", "1_2", "2_2"],
        ["X1x1", "X2x1", "X1x2", "X2x2"],
        ["0.97x1.02", "2.01x1", "1x1.98", "2.0x2.04"],
        ["50x60", "150x60", "50x160", "150x160"],
    ],
)
def test_spot_ids(tmp_path, ids):
    new = {"new_x": [x for x, _ in NEW], "new_y": [y for _, y in NEW]}
    check(hb.io.read_st(table(tmp_path / "S1.tsv", ids), spot_file(tmp_path / "spots.tsv", new)))


def test_tables_written_by_r(tmp_path):
    """No cell above the row names, names in quotation marks."""
    rows = [[f'"{gene}"' for gene in GENES], *([f'"{x}x{y}"', *c] for (x, y), c in zip(PLACES, COUNTS, strict=True))]
    check(hb.io.read_st(write(tmp_path / "S1.csv", rows, ","), spot_file(tmp_path / "spots.tsv")))


def test_counts_written_as_decimals(tmp_path):
    rows = [["", *GENES], *([f"{x}x{y}", *map(float, c)] for (x, y), c in zip(PLACES, COUNTS, strict=True))]
    check(hb.io.read_st(write(tmp_path / "S1.tsv", rows), spot_file(tmp_path / "spots.tsv")))


def test_only_selected_spots(tmp_path, messages):
    spots = spot_file(tmp_path / "spots.tsv", {"selected": [1, 0, 1, 0]})
    adata = hb.io.read_st(table(tmp_path / "S1.tsv"), spots)
    assert list(adata.obs_names) == ["1x1", "1x2"]
    assert adata.obs["in_tissue"].tolist() == [1, 1]
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS[[0, 2]])
    np.testing.assert_array_equal(adata.obsm["spatial"], np.array(PIXELS)[[0, 2]])
    assert "2 of 4 spots are on tissue" in messages.text
    spot_file(spots, {"selected": [0, 0, 0, 0]})
    with pytest.raises(DataError, match="selected is 1 for none of the 4 spots"):
        hb.io.read_st(tmp_path / "S1.tsv", spots)


def test_spots_of_one_file_only(tmp_path, messages):
    counts = table(tmp_path / "S1.tsv", ["1x1", "9x9", "1x2", "2x2"])
    adata = hb.io.read_st(counts, spot_file(tmp_path / "spots.tsv"))
    assert list(adata.obs_names) == ["1x1", "1x2", "2x2"]
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS[[0, 2, 3]])
    assert "1 of 4 spots are not in" in messages.text
    assert "such as 9x9" in messages.text
    assert "1 of 4 spots have no counts" in messages.text


def test_without_spot_file(tmp_path):
    ids = ["50x60", "150x60", "50x160", "150x160"]
    adata = hb.io.read_st(table(tmp_path / "S1.tsv", ids), mpp=2)
    np.testing.assert_array_equal(adata.obsm["spatial"], PIXELS)
    assert list(adata.obs) == ["library_id"]
    turned = hb.io.read_st(table(tmp_path / "turned.tsv", ids, turned=True))
    np.testing.assert_array_equal(turned.X.toarray(), COUNTS)
    with pytest.raises(DataError, match=r"'1x1', are places on the array.*give the spot file"):
        hb.io.read_st(table(tmp_path / "S1.tsv"))
    with pytest.raises(DataError, match=r"'spot' is no spot id"):
        hb.io.read_st(table(tmp_path / "S1.tsv", [*ids[:3], "spot"]))


def test_genes(tmp_path, messages):
    spots = spot_file(tmp_path / "spots.tsv")

    def read(*genes):
        rows = [["", *genes], *([f"{x}x{y}", *c] for (x, y), c in zip(PLACES, COUNTS.tolist(), strict=True))]
        return hb.io.read_st(write(tmp_path / "S1.tsv", rows), spots)

    adata = read("SDHD", "SDHD", "ACTB")
    assert list(adata.var_names) == ["SDHD", "SDHD-1", "ACTB"]
    assert "1 gene names occur again" in messages.text
    assert "gene_ids" not in adata.var
    assert "species" not in adata.uns["spatial"]["S1"]["metadata"]
    mouse = read("ENSMUSG00000064339.1", "ENSMUSG00000064337.1", "ERCC-00002")
    assert list(mouse.var["gene_ids"]) == list(mouse.var_names)
    assert mouse.uns["spatial"]["S1"]["metadata"]["species"] == "Mus musculus"
    human = read("ENSG00000141736", "ENSG00000075624", "ENSG00000111640.15")
    assert human.uns["spatial"]["S1"]["metadata"]["species"] == "Homo sapiens"
    with pytest.warns(UserWarning, match="'S1' mixes species: 2 of its genes are of human and 1 of mouse"):
        mixed = read("ENSG00000141736", "ENSMUSG00000064337.1", "ENSG00000111640")
    assert "species" not in mixed.uns["spatial"]["S1"]["metadata"]


def test_non_ascii_paths_and_names(tmp_path):
    folder = tmp_path / "Gewebe größer 組織"
    folder.mkdir()
    adata = hb.io.read_st(table(folder / "é.tsv.gz"), spot_file(folder / "spöts.tsv"))
    assert list(adata.uns["spatial"]) == ["é"]


# ---- pixel size


def lattice(path: Path, *, staggered: bool, step: float = 40.0, turn: float = 0.3) -> tuple[Path, Path, np.ndarray]:
    """Count table and spot file of an array turned in the image; and its pixels."""
    places = [(x, y) for x in range(1, 9) for y in range(1, 9) if not staggered or (x + y) % 2 == 0]
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    pixels = np.array(places) * (step / np.sqrt(2) if staggered else step) @ rotation + 200
    spots = [["x", "y", "pixel_x", "pixel_y"], *([*place, *xy] for place, xy in zip(places, pixels, strict=True))]
    counts = [["", "ACTB"], *([f"{x}x{y}", x] for x, y in places)]
    return write(path / "S1.tsv", counts), write(path / "spots.tsv", spots), pixels


def metadata(adata) -> dict:
    return adata.uns["spatial"]["S1"]["metadata"]


def test_pixel_size_of_a_square_array(tmp_path):
    counts, spots, _ = lattice(tmp_path, staggered=False)
    adata = hb.io.read_st(counts, spots)
    assert metadata(adata)["mpp"] == pytest.approx(200 / 40)
    assert "200 um (of square arrays) over 40.00 px" in metadata(adata)["mpp_source"]
    assert adata.uns["spatial"]["S1"]["scalefactors"]["spot_diameter_fullres"] == pytest.approx(20)
    assert metadata(hb.io.read_st(counts, spots, pitch_um=100))["mpp"] == pytest.approx(2.5)


def test_pixel_size_of_alternating_rows(tmp_path, messages):
    counts, spots, _ = lattice(tmp_path, staggered=True)
    adata = hb.io.read_st(counts, spots)
    assert "mpp" not in metadata(adata)
    assert adata.uns["spatial"]["S1"]["scalefactors"] == {}
    assert "pass pitch_um=" in messages.text
    assert metadata(hb.io.read_st(counts, spots, pitch_um=150))["mpp"] == pytest.approx(150 / 40)


def test_pixel_size_as_argument(files):
    adata = hb.io.read_st(*files, mpp=0.5, pitch_um=100)
    assert (metadata(adata)["mpp"], metadata(adata)["mpp_source"]) == (0.5, "argument")
    for mpp in (0, -1.0, np.nan):
        with pytest.raises(DataError, match="mpp is .*expected micrometres, a positive number"):
            hb.io.read_st(*files, mpp=mpp)
    with pytest.raises(DataError, match="pitch_um is 0; expected micrometres"):
        hb.io.read_st(*files, pitch_um=0)


def test_spots_in_a_line_have_no_pixel_size(tmp_path):
    spots = write(tmp_path / "spots.tsv", [["x", "y", "pixel_x", "pixel_y"], *([1, y, 50, 60 * y] for y in (1, 2, 3))])
    counts = write(tmp_path / "S1.tsv", [["", "ACTB"], *([f"1x{y}", y] for y in (1, 2, 3))])
    assert "mpp" not in metadata(hb.io.read_st(counts, spots))


# ---- image


def picture(path: Path, centre: tuple[int, int], radius: int, size: tuple[int, int] = (700, 700)) -> Path:
    """Tissue on a slide: a pink disc."""
    y, x = np.ogrid[: size[1], : size[0]]
    pixels = np.full((*size[::-1], 3), 240, np.uint8)
    pixels[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2] = 200, 120, 180
    Image.fromarray(pixels).save(path)
    return path


def test_image(tmp_path):
    counts, spots, _ = lattice(tmp_path, staggered=False, turn=0)
    image = picture(tmp_path / "a.png", (380, 380), 300)
    adata = hb.io.read_st(counts, spots, image=image, metadata={"organ": "Breast"})
    assert metadata(adata)["source_image_path"] == str(image)
    assert metadata(adata)["organ"] == "Breast"
    assert adata.uns["spatial"]["S1"]["images"]["hires"].shape == (700, 700, 3)
    with pytest.raises(ImageError, match="absent"):
        hb.io.read_st(counts, spots, image=tmp_path / "absent.png")


def test_image_of_another_section(tmp_path):
    counts, spots, _ = lattice(tmp_path, staggered=False, turn=0)
    image = picture(tmp_path / "a.png", (620, 620), 60)
    with pytest.warns(UserWarning, match=r"slide 'S1': \d+% of 64 spots lie beside the tissue.*another section"):
        hb.io.read_st(counts, spots, image=image)


def test_blank_image(tmp_path, messages):
    counts, spots, _ = lattice(tmp_path, staggered=False, turn=0)
    hb.io.read_st(counts, spots, image=picture(tmp_path / "a.png", (0, 0), 0))
    assert "no tissue is found" in messages.text


def test_micrometres_beside_the_tissue(tmp_path):
    """At 0.5 micrometres a pixel they lie inside the image, and not in a corner."""
    counts, spots, pixels = lattice(tmp_path, staggered=False, turn=0, step=80)
    image = picture(tmp_path / "a.png", tuple(2 * pixels.mean(axis=0).astype(int)), 580, size=(1800, 1800))
    with pytest.warns(UserWarning, match=r"spots lie beside .*look like micrometres: divided by mpp \(0\.5\)"):
        hb.io.read_st(counts, spots, image=image, mpp=0.5)


def test_swapped_axes_beside_the_tissue(tmp_path):
    spots = [
        ["x", "y", "pixel_x", "pixel_y"],
        *([x, y, 100 + 20 * x, 600 + 20 * y] for x in (1, 2, 3) for y in (1, 2, 3)),
    ]
    counts = [["", "ACTB"], *([f"{x}x{y}", x] for x in (1, 2, 3) for y in (1, 2, 3))]
    files = write(tmp_path / "S1.tsv", counts), write(tmp_path / "spots.tsv", spots)
    with pytest.warns(UserWarning, match="100% of 9 spots lie beside the tissue.*x and y look swapped"):
        hb.io.read_st(*files, image=picture(tmp_path / "a.png", (640, 140), 100))


# ---- refusals


def test_files_that_do_not_belong_together(tmp_path):
    counts, spots = table(tmp_path / "S1.tsv", ["7x7", "7x8", "8x7", "8x8"]), spot_file(tmp_path / "spots.tsv")
    with pytest.raises(DataError, match=r"neither its rows \(7x7, .*nor its columns \(ERBB2, .*spots.tsv, such as 1x1"):
        hb.io.read_st(counts, spots)


def test_duplicated_spots(tmp_path):
    spots = spot_file(tmp_path / "spots.tsv")
    with pytest.raises(DataError, match="several spot ids stand for the same spot"):
        hb.io.read_st(table(tmp_path / "S1.tsv", ["1x1", "1x1", "1x2", "2x2"]), spots)
    with pytest.raises(DataError, match="1 spot names occur more than once"):
        hb.io.read_st(table(tmp_path / "S1.tsv", ["50x600", "50x600", "10x20", "20x20"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\n", "cannot be read as a table"),
        (b"<!DOCTYPE html><html><body>404</body></html>\n", "it is a web page"),
        (b"\tERBB2\tACTB\n", "a header and no rows"),
        (b"\tERBB2\tACTB\n1x1\t3\t0\n2x1\t5\n", r"line 3 \('2x1'\): 1 numbers, expected 2.*truncated"),
        (b"\tERBB2\tACTB\n1x1\t3\tNA\n", r"line 2 \('1x1'\)"),
        (b"\tERBB2\tACTB\n1x1\t3\t-2\n", r"line 2 \('1x1'\): holds -2; expected counts"),
        (b"\tERBB2\tACTB\n1x1\t3\tnan\n", "holds nan"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "damaged or of another kind"),
        (b'{"message": "' + b"x" * 200_000 + b'"}', "damaged or of another kind"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "no header|neither its rows"),
        (gzip.compress(b"\tERBB2\tACTB\n1x1\t3\t0\n", mtime=0)[:-12], "truncated"),
    ],
)
def test_broken_count_tables(tmp_path, content, message):
    path = tmp_path / "S1.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        hb.io.read_st(path, spot_file(tmp_path / "spots.tsv"))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"<html></html>\n", "it is a web page"),
        (b"x\ty\tpixel_x\tpixel_y\n", "no rows"),
        (b"x\ty\n1\t1\n", r"no column pixel_x, pixel_y \(of 2: \['x', 'y'\]\)"),
        (b"\t" + b"\t".join(b"G%d" % i for i in range(30)) + b"\n", r"\(of 31: \['', 'G0'.* 'G6'\]\).* comes second"),
        (b"x\ty\tpixel_x\tpixel_y\n1\t1\t5\t6\n1\t2\t7\n", "line 3 holds something else than numbers.*truncated"),
        (b"x\ty\tpixel_x\tpixel_y\n1\t1\tfive\t6\n", "line 2 holds something else"),
    ],
)
def test_broken_spot_files(tmp_path, content, message):
    path = tmp_path / "spots.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        hb.io.read_st(table(tmp_path / "S1.tsv"), path)
    assert str(path) in str(error.value)


def test_folders_and_absent_files(tmp_path, files):
    counts, spots = files
    with pytest.raises(DataError, match="it is a folder"):
        hb.io.read_st(tmp_path, spots)
    with pytest.raises(DataError, match="it is a folder"):
        hb.io.read_st(counts, tmp_path)
    with pytest.raises(DataError, match="no such file"):
        hb.io.read_st(counts, tmp_path / "absent.tsv")


# ---- real data


@pytest.mark.skipif(not XFUSE.exists(), reason="the xfuse fixture is not in the data folder")
def test_xfuse():
    adata = hb.io.read_st(XFUSE / "counts.tsv", XFUSE / "spots.tsv", image=XFUSE / "image.jpg", library_id="xfuse")
    with open(XFUSE / "counts.tsv") as lines:
        header, *rows = csv.reader(lines, delimiter="\t")
    with open(XFUSE / "spots.tsv") as lines:
        spots = {f"{row['x']}x{row['y']}": row for row in csv.DictReader(lines, delimiter="\t")}
    assert adata.shape == (282, 10)
    assert list(adata.var_names) == header[1:]
    assert list(adata.obs_names) == [row[0] for row in rows]
    assert adata.X.sum() == sum(int(cell) for row in rows for cell in row[1:])
    for spot in (0, 100, 281):
        name = adata.obs_names[spot]
        assert adata.X[[spot]].toarray().ravel().tolist() == [int(cell) for cell in rows[spot][1:]]
        assert adata.obsm["spatial"][spot].tolist() == [float(spots[name]["pixel_x"]), float(spots[name]["pixel_y"])]
    # the image, 929 x 990 pixels, is the frame of 33 x 35 spots
    mpp = (200 / (929 / 32) + 200 / (990 / 34)) / 2
    assert adata.uns["spatial"]["xfuse"]["metadata"]["mpp"] == pytest.approx(mpp, rel=1e-3)


@pytest.mark.skipif(not (HER2ST / "ST-cnts/C3.tsv.gz").exists(), reason="her2st is not in the data folder")
def test_her2st():
    counts = HER2ST / "ST-cnts/C3.tsv.gz"
    adata = hb.io.read_st(counts, HER2ST / "ST-spotfiles/C3_selection.tsv")
    raw = pd.read_csv(counts, sep="\t", index_col=0)
    spots = pd.read_csv(HER2ST / "ST-spotfiles/C3_selection.tsv", sep="\t")
    spots.index = spots["x"].astype(str) + "x" + spots["y"].astype(str)
    assert adata.shape == raw.shape == (180, 15821)
    assert adata.X.sum() == raw.to_numpy().sum()
    np.testing.assert_array_equal(adata.obsm["spatial"], spots.loc[raw.index, ["pixel_x", "pixel_y"]])
    published = hb.datasets.her2st("C3", image=False)
    np.testing.assert_array_equal(adata.X.toarray(), published.X.toarray())
    mpp = published.uns["spatial"]["C3"]["metadata"]["mpp"]
    assert adata.uns["spatial"]["C3"]["metadata"]["mpp"] == pytest.approx(mpp, rel=1e-4)
