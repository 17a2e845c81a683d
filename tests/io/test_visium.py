from __future__ import annotations

import csv
import gzip
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import io as scipy_io
from scipy import sparse

import hibiost as hb
from hibiost.errors import DataError, ImageError
from hibiost.settings import settings

FIXTURES = settings.cache / "visium_fixtures"
SCANPY = "scanpy/tests/_data/visium_data"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="visium_fixtures not found: set HIBIOST_DATA_DIR")
N_ROWS, N_COLS, MPP = 10, 20, 0.5
GENES = ["TP53", "SPARC", "TWIN", "MBP", "TWIN"]


def lattice() -> list[tuple[str, int, int, int, float, float]]:
    """Barcode, in_tissue, array_row, array_col, pixel row and pixel column of a slide at half a micrometre a pixel."""
    spots = []
    for row in range(N_ROWS):
        for col in range(row % 2, N_COLS, 2):
            y, x = 150 + row * 100 * 3**0.5 / 2 / MPP, 40 + col * 50 / MPP
            spots.append((f"SPOT{row:02d}{col:02d}-1", int(row > 1), row, col, y, x))
    return spots


SPOTS = lattice()
IN_TISSUE = [spot[0] for spot in SPOTS if spot[1]][::-1]
COUNTS = np.random.default_rng(0).poisson(1.0, (len(IN_TISSUE), len(GENES)))


def write_h5(path: Path, matrix: np.ndarray, barcodes: list[str], **features: Any) -> None:
    """A matrix of spots x features as Space Ranger 2 lays it out."""
    columns = {
        "id": [f"ENSG{number:011d}" for number in range(len(GENES))],
        "name": GENES,
        "feature_type": ["Gene Expression"] * len(GENES),
        "genome": ["GRCh38"] * len(GENES),
        **features,
    }
    counts = sparse.csr_matrix(matrix)
    with h5py.File(path, "w") as file:
        file.attrs["chemistry_description"] = "Visium V4 Slide"
        file.attrs["library_ids"] = np.array([b"Sample"])
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, dtype="S")
        group["data"], group["indptr"] = counts.data.astype(np.int32), counts.indptr.astype(np.int64)
        group["indices"], group["shape"] = counts.indices.astype(np.int64), np.array(matrix.shape[::-1], np.int32)
        for name, values in columns.items():
            values = np.asarray(values)
            group[f"features/{name}"] = values if values.dtype == bool else values.astype("S")


def write_mtx(folder: Path, matrix: np.ndarray, barcodes: list[str]) -> None:
    folder.mkdir()
    rows = [f"ENSG{number:011d}\t{name}\tGene Expression" for number, name in enumerate(GENES)]
    (folder / "features.tsv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress("\n".join(barcodes).encode()))
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        scipy_io.mmwrite(file, sparse.coo_matrix(matrix.T.astype(int)))


def write_positions(spatial: Path, version: str, spots: list[tuple] = SPOTS) -> None:
    columns = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
    table = pd.DataFrame(spots, columns=columns)
    if version == "parquet":
        table.to_parquet(spatial / "tissue_positions.parquet")
    else:
        name = "tissue_positions_list.csv" if version == "v1" else "tissue_positions.csv"
        table.to_csv(spatial / name, index=False, header=version != "v1")


@pytest.fixture
def outs(tmp_path: Path) -> Path:
    """A run of Space Ranger 2, under a name with other letters than English ones."""
    outs = tmp_path / "Läufe 切片" / "outs"
    (outs / "spatial").mkdir(parents=True)
    write_h5(outs / "filtered_feature_bc_matrix.h5", COUNTS, IN_TISSUE)
    write_positions(outs / "spatial", "v2")
    factors = {"spot_diameter_fullres": 130.0, "tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.03}
    (outs / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    pixels = np.random.default_rng(1).integers(0, 255, (200, 210, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(outs / "spatial" / "tissue_hires_image.png")
    return outs


def places(adata: anndata.AnnData) -> dict[str, tuple]:
    obs = adata.obs
    values = zip(
        obs["in_tissue"],
        obs["array_row"],
        obs["array_col"],
        adata.obsm["spatial"][:, 1],
        adata.obsm["spatial"][:, 0],
        strict=True,
    )
    return dict(zip(adata.obs_names, values, strict=True))


@pytest.mark.parametrize("version", ["v1", "v2", "parquet"])
@pytest.mark.parametrize("matrix", ["h5", "mtx"])
def test_layouts(outs: Path, version: str, matrix: str) -> None:
    (outs / "spatial" / "tissue_positions.csv").unlink()
    write_positions(outs / "spatial", version)
    if matrix == "mtx":
        (outs / "filtered_feature_bc_matrix.h5").unlink()
        write_mtx(outs / "filtered_feature_bc_matrix", COUNTS, IN_TISSUE)
    adata = hb.io.read_visium(outs.parent)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
    assert list(adata.obs_names) == IN_TISSUE
    assert list(adata.var_names) == ["TP53", "SPARC", "TWIN", "MBP", "TWIN-1"]
    assert adata.var["gene_ids"].iloc[4] == "ENSG00000000004"
    expected = {name: tuple(rest) for name, *rest in SPOTS}
    for name, place in places(adata).items():
        assert place == pytest.approx(expected[name])
    library = "Sample" if matrix == "h5" else "Läufe 切片"
    assert list(adata.uns["spatial"]) == [library]
    assert set(adata.obs["library_id"]) == {library}
    metadata = adata.uns["spatial"][library]["metadata"]
    assert metadata["mpp"] == pytest.approx(MPP, rel=1e-6)
    assert metadata["mpp_source"] == "lattice: 100 um between spots"
    assert metadata["species"] == "Homo sapiens"
    assert metadata["st_technology"] == "Visium"


def test_survives_files(outs: Path, tmp_path: Path) -> None:
    adata = hb.io.read_visium(outs)
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert (back.X != adata.X).nnz == 0
    assert back.uns["spatial"]["Sample"]["metadata"] == adata.uns["spatial"]["Sample"]["metadata"]
    assert back.uns["spatial"]["Sample"]["metadata"]["chemistry"] == "Visium V4 Slide"


def test_raw_counts(outs: Path) -> None:
    barcodes = [spot[0] for spot in SPOTS]
    write_h5(outs / "raw_feature_bc_matrix.h5", np.eye(len(SPOTS), len(GENES)), barcodes)
    adata = hb.io.read_visium(outs, counts_file="raw_feature_bc_matrix.h5", library_id="S1")
    assert adata.n_obs == len(SPOTS)
    assert adata.obs["in_tissue"].sum() == len(IN_TISSUE)
    assert list(adata.uns["spatial"]) == ["S1"]
    with pytest.raises(DataError, match=r"there is no .*other\.h5; .* holds .*counts_file="):
        hb.io.read_visium(outs, counts_file="other.h5")


def test_prefixed_counts(outs: Path) -> None:
    (outs / "filtered_feature_bc_matrix.h5").rename(outs / "GSM1_filtered_feature_bc_matrix.h5")
    assert hb.io.read_visium(outs).n_obs == len(IN_TISSUE)
    shutil.copy(outs / "GSM1_filtered_feature_bc_matrix.h5", outs / "GSM2_filtered_feature_bc_matrix.h5")
    with pytest.raises(DataError, match="2 count matrices.*choose with counts_file="):
        hb.io.read_visium(outs)


def test_probes_are_summed(outs: Path) -> None:
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    probes = np.random.default_rng(2).poisson(2.0, (len(IN_TISSUE), 6))
    features = {
        "id": ["ENSG1|a", "ENSG2|b", "ENSG1|c", "ENSG3|d", "ENSG2|e", "ENSG2|f"],
        "name": ["A|a", "B|b", "A|c", "C|d", "B|e", "B|f"],
        "gene_id": ["ENSG1", "ENSG2", "ENSG1", "ENSG3", "ENSG2", "ENSG2"],
        "gene_name": ["A", "B", "A", "C", "B", "B"],
        "feature_type": ["Gene Expression"] * 6,
        "genome": ["GRCh38"] * 6,
        "filtered_probes": np.array([True, True, True, False, False, True]),
    }
    write_h5(outs / "raw_probe_bc_matrix.h5", probes, IN_TISSUE, **features)
    adata = hb.io.read_visium(outs)
    assert list(adata.var_names) == ["A", "B"]
    np.testing.assert_array_equal(adata.X.toarray(), np.c_[probes[:, 0] + probes[:, 2], probes[:, 1] + probes[:, 5]])


def test_other_features_are_left_out(outs: Path, caplog: pytest.LogCaptureFixture) -> None:
    types = ["Gene Expression", "Antibody Capture", "Gene Expression", "Gene Expression", "Antibody Capture"]
    write_h5(outs / "filtered_feature_bc_matrix.h5", COUNTS, IN_TISSUE, feature_type=types)
    with caplog.at_level(logging.INFO, "hibiost"):
        adata = hb.io.read_visium(outs)
    assert list(adata.var_names) == ["TP53", "TWIN", "MBP"]
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS[:, [0, 2, 3]])
    assert "'Antibody Capture': 2" in caplog.text
    write_h5(outs / "filtered_feature_bc_matrix.h5", COUNTS, IN_TISSUE, feature_type=["Antibody Capture"] * 5)
    with pytest.raises(DataError, match="Antibody Capture.*expected 'Gene Expression'"):
        hb.io.read_visium(outs)


def test_mixed_genomes(outs: Path) -> None:
    genome = ["GRCh38", "GRCh38", "mm10", "mm10", "GRCh38"]
    ids = ["GRCh38_ENSG01", "GRCh38_ENSG02", "mm10___ENSMUSG03", "mm10___ENSMUSG04", "GRCh38_ENSG05"]
    names = ["GRCh38_TP53", "GRCh38_SPARC", "mm10___Mbp", "mm10___Sparc", "GRCh38_MBP"]
    write_h5(outs / "filtered_feature_bc_matrix.h5", COUNTS, IN_TISSUE, genome=genome, id=ids, name=names)
    with pytest.raises(DataError, match=r"mixes the genomes \['GRCh38', 'mm10'\].*genome='GRCh38'"):
        hb.io.read_visium(outs)
    with pytest.raises(DataError, match="no genome 'hg19'"):
        hb.io.read_visium(outs, genome="hg19")
    mouse = hb.io.read_visium(outs, genome="mm10")
    assert list(mouse.var_names) == ["Mbp", "Sparc"]
    assert list(mouse.var["gene_ids"]) == ["ENSMUSG03", "ENSMUSG04"]
    np.testing.assert_array_equal(mouse.X.toarray(), COUNTS[:, 2:4])
    assert mouse.uns["spatial"]["Sample"]["metadata"]["species"] == "Mus musculus"


def test_species_mixed_without_genomes(outs: Path) -> None:
    ids = ["ENSG01", "ENSG02", "ENSMUSG03", "ENSMUSG04", "ENSG05"]
    write_h5(outs / "filtered_feature_bc_matrix.h5", COUNTS, IN_TISSUE, id=ids, genome=[""] * 5)
    with pytest.raises(DataError, match="mixes genes of Homo sapiens and Mus musculus"):
        hb.io.read_visium(outs)


def test_file_of_cell_ranger_2(outs: Path) -> None:
    counts = sparse.csr_matrix(COUNTS)
    with h5py.File(outs / "filtered_feature_bc_matrix.h5", "w") as file:
        for genome in ("GRCh38", "mm10"):
            group = file.create_group(genome)
            group["barcodes"], group["shape"] = np.array(IN_TISSUE, dtype="S"), np.array(COUNTS.shape[::-1])
            group["data"], group["indices"], group["indptr"] = counts.data, counts.indices, counts.indptr
            group["gene_names"] = np.array(GENES, dtype="S")
            group["genes"] = np.array([f"ENSG0{i}" for i in range(5)], dtype="S")
    with pytest.raises(DataError, match="mixes the genomes"):
        hb.io.read_visium(outs)
    adata = hb.io.read_visium(outs, genome="GRCh38")
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
    with h5py.File(outs / "filtered_feature_bc_matrix.h5", "a") as file:
        del file["mm10"]
    assert hb.io.read_visium(outs).n_vars == 5


def test_full_resolution_image(outs: Path, tmp_path: Path) -> None:
    path = tmp_path / "bild.png"
    Image.fromarray(np.full((2000, 2100, 3), 200, np.uint8)).save(path)
    adata = hb.io.read_visium(outs, image=path)
    assert adata.uns["spatial"]["Sample"]["metadata"]["source_image_path"] == str(path)
    Image.fromarray(np.full((1000, 1050, 3), 200, np.uint8)).save(path)
    with pytest.raises(ImageError, match=r"1050 x 1000 pixels, but .* about 2100 x 2000.*full-resolution"):
        hb.io.read_visium(outs, image=path)
    with pytest.raises(ImageError, match="no image file"):
        hb.io.read_visium(outs, image=tmp_path / "absent.tif")


def test_image_is_told(outs: Path, caplog: pytest.LogCaptureFixture) -> None:
    hires = outs / "spatial" / "tissue_hires_image.png"
    for pixels, words in (
        (np.array(Image.open(hires)), "hires image is read for patches"),
        (np.zeros((200, 210, 3), np.uint8), "hires image is blank"),
        (np.tile(np.arange(210, dtype=np.uint8), (200, 1)), "hires image is grey, perhaps the CytAssist"),
    ):
        Image.fromarray(pixels).save(hires)
        caplog.clear()
        hb.io.read_visium(outs)
        assert "pass image=" in caplog.text
        assert words in caplog.text
    hires.rename(outs / "spatial" / "tissue_lowres_image.png")
    hb.io.read_visium(outs)
    assert "lowres image is grey" in caplog.text
    (outs / "spatial" / "tissue_lowres_image.png").unlink()
    assert hb.io.read_visium(outs).uns["spatial"]["Sample"]["images"] == {}
    assert "no image; pass image=" in caplog.text
    hires.write_bytes(b"")
    with pytest.raises(ImageError, match="tissue_hires_image"):
        hb.io.read_visium(outs)


def test_spots_outside_are_told(outs: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(np.full((200, 150, 3), 240, np.uint8)).save(outs / "spatial" / "tissue_hires_image.png")
    hb.io.read_visium(outs)
    outside = sum(x >= 1500 for _, tissue, *_, x in SPOTS if tissue)
    assert f"{outside} of 80 spots lie outside the image." in caplog.text


def test_exchanged_array_columns_are_put_right(outs: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_positions(outs / "spatial", "v2", [(n, t, col, row, y, x) for n, t, row, col, y, x in SPOTS])
    adata = hb.io.read_visium(outs)
    assert "array_row and array_col are exchanged" in caplog.text
    expected = {name: tuple(rest) for name, *rest in SPOTS}
    name = adata.obs_names[3]
    assert places(adata)[name] == pytest.approx(expected[name])
    assert adata.uns["spatial"]["Sample"]["metadata"]["mpp"] == pytest.approx(MPP)


class TestPixelSize:
    @staticmethod
    def read(outs: Path, **options: Any) -> tuple[float | None, str | None]:
        metadata = hb.io.read_visium(outs, **options).uns["spatial"]["Sample"]["metadata"]
        return metadata.get("mpp"), metadata.get("mpp_source")

    @staticmethod
    def factors(outs: Path, **changes: float) -> None:
        path = outs / "spatial" / "scalefactors_json.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def test_argument(self, outs: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert self.read(outs, mpp=0.25) == (0.25, "argument")
        assert "the lattice (100 um between spots) says 0.5" in caplog.text
        with pytest.raises(DataError, match="mpp is -1"):
            self.read(outs, mpp=-1)

    def test_space_rangers_own(self, outs: Path) -> None:
        self.factors(outs, microns_per_pixel=0.501)
        assert self.read(outs) == (0.501, "scalefactors: microns_per_pixel")

    def test_turned_and_with_outliers(self, outs: Path) -> None:
        (outs / "spatial" / "tissue_hires_image.png").unlink()
        turn = np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
        rng = np.random.default_rng(5)
        spots = []
        for i, (name, tissue, row, col, y, x) in enumerate(SPOTS):
            far = rng.normal(0, 300, 2) if i % 12 == 0 else np.zeros(2)
            x, y = np.rint(turn @ (x, y) + (2000, 2000) + far)
            spots.append((name, tissue, row, col, y, x))
        write_positions(outs / "spatial", "v2", spots)
        assert self.read(outs)[0] == pytest.approx(MPP, rel=2e-3)

    def test_broken_lattice(self, outs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rng = np.random.default_rng(6)
        spots = [(n, t, r, c, *rng.uniform(10, 1900, 2)) for n, t, r, c, _, _ in SPOTS]
        write_positions(outs / "spatial", "v2", spots)
        assert self.read(outs) == (None, None)
        assert "do not lie on a regular lattice" in caplog.text
        assert "pixel size cannot be told from the files; pass mpp=" in caplog.text
        image = tmp_path / "image.tif"
        import tifffile

        tifffile.imwrite(
            image,
            np.full((2000, 2100, 3), 9, np.uint8),
            photometric="rgb",
            ome=True,
            metadata={
                "axes": "YXS",
                "PhysicalSizeX": 0.4,
                "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": 0.4,
                "PhysicalSizeYUnit": "µm",
            },
        )
        assert self.read(outs, image=image)[0] == pytest.approx(0.4)

    def test_spot_diameter(self, outs: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.factors(outs, spot_diameter_fullres=300.0)
        self.read(outs)
        assert "spot_diameter_fullres is 150 um at 0.5 um per pixel" in caplog.text

    def test_spots_in_a_line(self, outs: Path) -> None:
        write_positions(outs / "spatial", "v2", [(n, t, 0, c, 10.0, x) for n, t, _, c, _, x in SPOTS])
        assert self.read(outs) == (None, None)


def test_missing_positions(outs: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_positions(outs / "spatial", "v2", [spot for spot in SPOTS if spot[0] not in IN_TISSUE[:3]])
    with pytest.raises(DataError, match=r"3 of 80 barcodes of .*SPOT0919-1.*no position in .*missing='drop'"):
        hb.io.read_visium(outs)
    adata = hb.io.read_visium(outs, missing="drop")
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS[3:])
    assert "are left out" in caplog.text
    write_positions(outs / "spatial", "v2", [(f"X{n}", *rest) for n, *rest in SPOTS])
    with pytest.raises(DataError, match="80 of 80 barcodes"):
        hb.io.read_visium(outs, missing="drop")


def html(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "words"),
    [(html, "web page"), (truncate, "truncated"), (empty, "is empty"), (folder_instead, "matrix.mtx, features.tsv")],
)
def test_bad_counts(outs: Path, harm: Callable[[Path], None], words: str) -> None:
    path = outs / "filtered_feature_bc_matrix.h5"
    harm(path)
    with pytest.raises(DataError, match=words) as error:
        hb.io.read_visium(outs)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("part", ["matrix.mtx", "features.tsv", "barcodes.tsv"])
@pytest.mark.parametrize("harm", [html, truncate, empty, Path.unlink])
def test_bad_mtx(outs: Path, part: str, harm: Callable[[Path], None]) -> None:
    folder = outs / "raw_feature_bc_matrix"
    write_mtx(folder, COUNTS, IN_TISSUE)
    harm(folder / f"{part}.gz")
    with pytest.raises(DataError, match=part.replace(".", r"\.")):
        hb.io.read_visium(outs, counts_file=folder.name)


def test_bad_mtx_that_is_not_zipped(outs: Path) -> None:
    folder = outs / "raw_feature_bc_matrix"
    write_mtx(folder, COUNTS, IN_TISSUE)
    (folder / "matrix.mtx.gz").unlink()
    (folder / "matrix.mtx").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(DataError, match=r"matrix\.mtx cannot be read as a Matrix Market file.*damaged"):
        hb.io.read_visium(outs, counts_file=folder.name)


@pytest.mark.parametrize("version", ["v1", "v2", "parquet"])
@pytest.mark.parametrize(("harm", "words"), [(html, "web page"), (truncate, "truncated"), (empty, "is empty")])
def test_bad_positions(outs: Path, version: str, harm: Callable[[Path], None], words: str) -> None:
    (outs / "spatial" / "tissue_positions.csv").unlink()
    write_positions(outs / "spatial", version)
    path = next((outs / "spatial").glob("tissue_positions*"))
    harm(path)
    if harm is truncate and version != "parquet":
        path.write_text(path.read_text().rsplit(",", 1)[0] + "\n")
    with pytest.raises(DataError, match=words) as error:
        hb.io.read_visium(outs)
    assert str(path) in str(error.value)


def test_odd_positions(outs: Path) -> None:
    path = outs / "spatial" / "tissue_positions.csv"
    path.write_text("barcode,in_tissue,row,col\nA-1,1,0,0\n")
    with pytest.raises(DataError, match="'pxl_row_in_fullres'.* are missing"):
        hb.io.read_visium(outs)
    write_positions(outs / "spatial", "v2", [*SPOTS, SPOTS[0]])
    with pytest.raises(DataError, match="names some barcodes more than once"):
        hb.io.read_visium(outs)
    write_positions(outs / "spatial", "v2", [])
    with pytest.raises(DataError, match="holds no spots"):
        hb.io.read_visium(outs)
    path.unlink()
    with pytest.raises(DataError, match=r"expected one of tissue_positions\.parquet"):
        hb.io.read_visium(outs)


@pytest.mark.parametrize("harm", [html, truncate, empty, Path.unlink, lambda path: path.write_text("[1]")])
def test_bad_scalefactors(outs: Path, harm: Callable[[Path], Any]) -> None:
    harm(outs / "spatial" / "scalefactors_json.json")
    with pytest.raises(DataError, match=r"scalefactors_json\.json cannot be read as scale factors"):
        hb.io.read_visium(outs)


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_scalefactors_that_are_none(outs: Path, value: float) -> None:
    TestPixelSize.factors(outs, tissue_hires_scalef=value)
    with pytest.raises(DataError, match=f"'tissue_hires_scalef' is {float(value)}, expected a positive number"):
        hb.io.read_visium(outs)


def test_an_image_without_its_scale_is_kept(outs: Path) -> None:
    (outs / "spatial" / "scalefactors_json.json").write_text('{"spot_diameter_fullres": 130.0}')
    entry = hb.io.read_visium(outs).uns["spatial"]["Sample"]
    assert entry["images"]["hires"].shape == (200, 210, 3)
    assert entry["scalefactors"] == {"spot_diameter_fullres": 130.0}


def test_transposed(outs: Path) -> None:
    path = outs / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "a") as file:
        counts = sparse.csc_matrix(COUNTS)
        for name, values in (("data", counts.data), ("indices", counts.indices), ("indptr", counts.indptr)):
            del file["matrix"][name]
            file["matrix"][name] = values
    with pytest.raises(DataError, match="is transposed .*5 rows for 5 features and 80 barcodes"):
        hb.io.read_visium(outs)
    with h5py.File(path, "a") as file:
        file["matrix/shape"][...] = COUNTS.shape
    with pytest.raises(DataError, match="is transposed .*a matrix of 80 x 5 for 5 features"):
        hb.io.read_visium(outs)
    path.unlink()
    write_mtx(outs / "filtered_feature_bc_matrix", COUNTS.T[:, :5].repeat(16, axis=1).T, IN_TISSUE)
    scipy_io.mmwrite(outs / "matrix.mtx", sparse.coo_matrix(COUNTS))
    (outs / "filtered_feature_bc_matrix" / "matrix.mtx.gz").unlink()
    (outs / "matrix.mtx").rename(outs / "filtered_feature_bc_matrix" / "matrix.mtx")
    with pytest.raises(DataError, match="is transposed"):
        hb.io.read_visium(outs)


def test_damaged_matrix(outs: Path) -> None:
    path = outs / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "a") as file:
        file["matrix/indices"][7] = 99
    with pytest.raises(DataError, match="points at feature 99 of 5"):
        hb.io.read_visium(outs)
    with h5py.File(path, "a") as file:
        file["matrix/indptr"][-1] += 1
    with pytest.raises(DataError, match="row pointers do not fit"):
        hb.io.read_visium(outs)
    write_h5(path, COUNTS, [*IN_TISSUE[:-1], IN_TISSUE[0]])
    with pytest.raises(DataError, match=r"1 barcodes occur more than once, such as \['SPOT0919-1'\]"):
        hb.io.read_visium(outs)
    with h5py.File(path, "w") as file:
        file["other"] = 1
    with pytest.raises(DataError, match=r"holds \['other'\]; expected the group 'matrix'"):
        hb.io.read_visium(outs)


def test_bad_folders(outs: Path) -> None:
    with pytest.raises(DataError, match="is a file; expected Space Ranger's outs folder"):
        hb.io.read_visium(outs / "filtered_feature_bc_matrix.h5")
    with pytest.raises(DataError, match="there is no folder"):
        hb.io.read_visium(outs / "absent")
    shutil.rmtree(outs / "spatial")
    with pytest.raises(DataError, match="no folder 'spatial'; pass the folder that holds it"):
        hb.io.read_visium(outs)
    (outs / "S1_spatial.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"unpack S1_spatial\.tar\.gz there first"):
        hb.io.read_visium(outs)
    (outs / "binned_outputs").mkdir()
    with pytest.raises(DataError, match="read_visium_hd"):
        hb.io.read_visium(outs)
    shutil.rmtree(outs / "binned_outputs")
    (outs / "spatial").mkdir()
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    with pytest.raises(DataError, match="but no counts; expected filtered_feature_bc_matrix.h5"):
        hb.io.read_visium(outs)


def raw_positions(folder: Path) -> dict[str, list[float]]:
    """Columns after the barcode, read by the csv module."""
    path = next(folder.glob("tissue_positions*.csv"))
    with open(path) as file:
        rows = list(csv.reader(file))
    return {row[0]: [float(value) for value in row[1:]] for row in rows if row[0] != "barcode"}


REAL = {
    "cytassist_mouse_eye": (2898, 19465, "Mus musculus", 4.6669),
    f"{SCANPY}/1.0.0": (100, 100, "Homo sapiens", 0.7252),
    "squidpy/tests/_data": (100, 100, "Homo sapiens", 0.7252),
    "seurat/tests/testdata/visium": (2695, 100, "Mus musculus", 0.7248),
}


@needs_fixtures
@pytest.mark.parametrize("folder", REAL)
def test_real_sections(folder: str) -> None:
    n_spots, n_genes, species, mpp = REAL[folder]
    adata = hb.io.read_visium(FIXTURES / folder)
    with h5py.File(FIXTURES / folder / "filtered_feature_bc_matrix.h5") as file:
        group = file["matrix"]
        barcodes, ids = group["barcodes"][:].astype(str), group["features/id"][:].astype(str)
        total, indptr, indices, data = group["data"][:].sum(), group["indptr"][:], group["indices"][:], group["data"][:]
    assert adata.shape == (n_spots, n_genes) == (len(barcodes), len(ids))
    assert adata.X.sum(dtype=np.float64) == total
    np.testing.assert_array_equal(adata.obs_names, barcodes)
    np.testing.assert_array_equal(adata.var["gene_ids"], ids)
    positions = raw_positions(FIXTURES / folder / "spatial")
    for i in (0, n_spots // 2, n_spots - 1):
        in_tissue, row, col, y, x = positions[barcodes[i]]
        assert tuple(adata.obsm["spatial"][i]) == (x, y)
        assert tuple(adata.obs[["in_tissue", "array_row", "array_col"]].iloc[i]) == (in_tissue, row, col)
        entries = slice(indptr[i], indptr[i + 1])
        np.testing.assert_array_equal(adata.X[i].indices, indices[entries])
        np.testing.assert_array_equal(adata.X[i].data, data[entries])
    entry = next(iter(adata.uns["spatial"].values()))
    assert entry["metadata"]["species"] == species
    assert entry["metadata"]["mpp"] == pytest.approx(mpp, abs=1e-4)
    assert entry["metadata"]["mpp_source"].startswith("lattice")
    in_row = [(positions[b][4], positions[b][2]) for b in barcodes if positions[b][1] == positions[barcodes[0]][1]]
    (left, first), (right, last) = min(in_row, key=lambda spot: spot[1]), max(in_row, key=lambda spot: spot[1])
    if last > first:
        assert (last - first) * 50 / (right - left) == pytest.approx(mpp, rel=0.01)


@needs_fixtures
def test_as_scanpy_reads_it() -> None:
    import scanpy

    path = FIXTURES / "cytassist_mouse_eye" / "filtered_feature_bc_matrix.h5"
    with pytest.warns(UserWarning, match="not unique"):
        expected = scanpy.read_10x_h5(path)
    adata = hb.io.read_visium(path.parent)
    assert (adata.X != expected.X).nnz == 0
    np.testing.assert_array_equal(adata.var["gene_ids"], expected.var["gene_ids"])


@needs_fixtures
def test_real_probes(outs: Path) -> None:
    (outs / "spatial" / "tissue_hires_image.png").unlink()
    source = FIXTURES / SCANPY / "2.1.0" / "raw_probe_bc_matrix.h5"
    with h5py.File(source) as file:
        group = file["matrix"]
        barcodes, kept = group["barcodes"][:].astype(str), group["features/filtered_probes"][:]
        genes = group["features/gene_id"][:].astype(str)
        data, indices, indptr = group["data"][:], group["indices"][:], group["indptr"][:]
    expected: dict[tuple[str, str], int] = {}
    for i, barcode in enumerate(barcodes):
        for j in range(indptr[i], indptr[i + 1]):
            if kept[indices[j]]:
                key = barcode, genes[indices[j]]
                expected[key] = expected.get(key, 0) + int(data[j])
    spots = [(b, 1, i // 64, 2 * (i % 64) + (i // 64) % 2) for i, b in enumerate(barcodes)]
    write_positions(outs / "spatial", "v2", [(*spot, spot[2] * 3**0.5, spot[3]) for spot in spots])
    adata = hb.io.read_visium(outs, counts_file=source)
    assert adata.n_vars == len(set(genes[kept]))
    counts = adata.X.tocoo()
    found = {
        (adata.obs_names[i], adata.var["gene_ids"].iloc[j]): value
        for i, j, value in zip(counts.row, counts.col, counts.data, strict=True)
    }
    assert found == expected
