"""SpatialData: its table as the AnnData that the verbs read, and what they write back into it."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast, overload

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from .. import keys
from ..errors import DataError, ImageError, nearest
from ..images import open_image, thumbnail
from ..settings import logger

if TYPE_CHECKING:
    from spatialdata import SpatialData

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
ImageKey = str | Mapping[str, str] | None
Entry = dict[str, dict[str, Any]]

THUMBNAIL_PX = 1000
SAME_PLACE = 0.5
"""Pixels by which the coordinate systems that spots and image share may disagree."""
SQUARE = 0.01
MICROMETRES = ("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres")
"""Names, in lower case, of coordinate systems whose unit is the micrometre."""
MAPPINGS = ("obsm", "varm", "obsp", "varp", "layers", "uns")

TAKES = """
table_key
    Of a SpatialData object: the table to read and to write into; needed where it holds several.
image_key
    Of a SpatialData object: the H&E image, or a dict of the image of each region; needed where the spots share a
    coordinate system with several images."""


# -- reading ---------------------------------------------------------------------------------------------------------


def is_spatialdata(value: object) -> bool:
    """Whether it is a SpatialData object; spatialdata is not imported to tell."""
    module = sys.modules.get("spatialdata")
    return module is not None and isinstance(value, module.SpatialData)


def pick_table(sdata: SpatialData, table_key: str | None) -> tuple[str, AnnData]:
    """Name and AnnData of the table named, else of the only one.

    Raises
    ------
    DataError
        There is no table, none of that name, or several and none named.
    """
    names = list(sdata.tables)
    if table_key is None and len(names) == 1:
        table_key = names[0]
    if table_key is None:
        which = "it holds none" if not names else f"there are several, {names}: name one with table_key="
        raise DataError(f"expected a SpatialData object with one table; {which}.")
    if table_key not in names:
        raise DataError(f"the SpatialData has no table {table_key!r}; there are {names}.{nearest(table_key, names)}")
    return table_key, sdata.tables[table_key]


def shallow(adata: AnnData) -> AnnData:
    """Another AnnData with the same contents: slots set in one are not in the other."""
    parts: dict[str, Any] = {name: _slots(adata, name) for name in MAPPINGS}
    return AnnData(adata.X, obs=adata.obs.copy(deep=False), var=adata.var.copy(deep=False), **parts)


def _slots(adata: AnnData, name: str) -> dict[str, Any]:
    """A mapping of an AnnData as a dict, without the ``X`` that anndata 0.13 lists among the layers."""
    return {key: value for key, value in getattr(adata, name).items() if key is not None}


def as_anndata(sdata: SpatialData, *, table_key: str | None = None, image_key: ImageKey = None) -> AnnData:
    """The table as the AnnData of the contract: regions are slides, coordinates those of the image's pixels.

    Nothing is copied and no pixel read. ``images["fullres"]`` of a slide is its image, lazy, and ``images["hires"]``
    makes a thumbnail when it is looked at; for an image that lies in a zarr store unchanged, ``source_image_path``
    names it instead. Where a slide has no image that is sure to be meant, coordinates are those of its shapes, and
    ``images["hires"]`` raises why.

    Raises
    ------
    DataError
        No or several tables; a table or image of that name is absent; the table names no regions; spots without shape;
        shapes and the image named share no coordinate system, or several that disagree.
    """
    _, table = pick_table(sdata, table_key)
    regions, instances = _annotation(table)
    view = shallow(table)
    view.obs[keys.LIBRARY] = pd.Categorical(regions)
    xy = np.full((table.n_obs, 2), np.nan)
    entries: dict[str, Entry] = {}
    recorded = table.uns.get(keys.SPATIAL, {})
    for region in pd.unique(regions):
        rows = np.flatnonzero(regions == region)
        entries[region], xy[rows] = _slide(sdata, region, instances[rows], image_key, recorded.get(region, {}))
    view.obsm[keys.SPATIAL] = xy
    view.uns[keys.SPATIAL] = entries
    return view


def image_alone(sdata: SpatialData, image_key: ImageKey = None) -> AnnData:
    """An image without table as a slide without spots and genes.

    Raises
    ------
    DataError
        No or several images and none named, or none of that name.
    """
    names = list(sdata.images)
    name = names[0] if image_key is None and len(names) == 1 else image_key
    if name not in names:
        raise DataError(
            f"the SpatialData holds no table; of its images, {names}, name one with image_key= to take it as a slide "
            "without spots, or add a table with spatialdata.models.TableModel.parse."
        )
    image = sdata.images[name]
    entry: Entry = {"images": {}, "scalefactors": {}, "metadata": _pixel_size(_affines(image))}
    _place_image(entry, image, 1.0)
    adata = AnnData(sparse.csr_matrix((0, 0), dtype=np.float32))
    adata.obs[keys.LIBRARY] = pd.Categorical([], categories=[name])
    adata.obsm[keys.SPATIAL] = np.empty((0, 2))
    adata.uns[keys.SPATIAL] = {name: entry}
    return adata


def _annotation(table: AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Region and instance of each spot."""
    attrs = table.uns.get("spatialdata_attrs", {})
    if table.n_obs == 0:
        raise DataError("the table holds no spots (n_obs = 0); was it filtered too hard?")
    if not {"region_key", "instance_key"} <= attrs.keys() or not attrs.get("region"):
        raise DataError(
            "the table does not say which shapes its spots are; name them with spatialdata.models.TableModel.parse("
            "table, region=, region_key=, instance_key=)."
        )
    absent = [name for name in (attrs["region_key"], attrs["instance_key"]) if name not in table.obs]
    if absent:
        raise DataError(f"the table has no obs[{absent[0]!r}], which its spatialdata_attrs name; parse it anew.")
    regions = table.obs[attrs["region_key"]]
    if regions.isna().any():
        raise DataError(f"obs[{attrs['region_key']!r}] is empty (NaN) for {int(regions.isna().sum())} spots.")
    return regions.astype(str).to_numpy(dtype=object), table.obs[attrs["instance_key"]].to_numpy()


def _slide(
    sdata: SpatialData, region: str, instances: np.ndarray, image_key: ImageKey, recorded: Mapping[str, Any]
) -> tuple[Entry, np.ndarray]:
    """Entry of ``uns["spatial"]`` and spot centres of one region."""
    shapes = _shapes(sdata, region, instances)
    entry: Entry = {part: dict(recorded.get(part, {})) for part in ("images", "scalefactors", "metadata")}
    known = {"key": entry["metadata"].pop("image_key", None), "scale": entry["metadata"].pop("image_scale", 1.0)}
    to_pixels, scale = np.eye(3), 1.0
    name, problem = _choose(sdata, region, image_key, known["key"])
    if name is not None:
        image = sdata.images[name]
        entry["metadata"].pop("source_image_path", None)
        to_pixels = _to_pixels(sdata, region, name)
        if known["key"] not in (None, name):
            entry["metadata"].pop("mpp", None)
        elif known["key"] == name:
            scale = float(known["scale"])
        _place_image(entry, image, scale)
        if "mpp" not in entry["metadata"]:
            systems = {system: m @ np.linalg.inv(to_pixels) for system, m in _affines(sdata.shapes[region]).items()}
            entry["metadata"] |= _pixel_size({**systems, **_affines(image)}, scale)
    elif problem:
        entry["images"]["hires"] = _Unusable(problem)
        entry["scalefactors"]["tissue_hires_scalef"] = 1.0
    xy = np.column_stack([shapes.geometry.centroid.x, shapes.geometry.centroid.y])
    xy = (xy @ to_pixels[:2, :2].T + to_pixels[:2, 2]) / scale
    stretch = np.sqrt(abs(np.linalg.det(to_pixels[:2, :2]))) / scale
    radius = shapes["radius"] if "radius" in shapes else np.sqrt(shapes.geometry.area / np.pi)
    entry["scalefactors"]["spot_diameter_fullres"] = float(2 * np.median(radius) * stretch)
    return entry, xy


def _shapes(sdata: SpatialData, region: str, instances: np.ndarray) -> Any:
    """Shapes of the spots, in their order."""
    if region not in sdata.shapes:
        raise DataError(
            f"the table's region {region!r} is none of the shapes {list(sdata.shapes)} of the SpatialData; labels and "
            "points become shapes with spatialdata.to_circles."
        )
    shapes = sdata.shapes[region]
    positions = shapes.index.get_indexer(instances)
    if (positions < 0).any():
        missing = instances[positions < 0]
        raise DataError(
            f"{len(missing)} of {len(instances)} spots of region {region!r} are not among its shapes, such as "
            f"{_named(missing[0])}; the shapes are named such as {_named(shapes.index[0])}."
        )
    return shapes.iloc[positions]


def _named(value: Any) -> str:
    return repr(value.item() if isinstance(value, np.generic) else value)


# -- images and coordinate systems -----------------------------------------------------------------------------------


class _Unusable:
    """Stands where an image would be; whoever looks at it is told why there is none."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise self._error


class _Thumbnail:
    """A reduced image, made when it is looked at."""

    def __init__(self, image: Any) -> None:
        self._image = image

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        with open_image(self._image) as source:
            return thumbnail(source, max_px=THUMBNAIL_PX)[0]


def _choose(
    sdata: SpatialData, region: str, image_key: ImageKey, recorded: str | None
) -> tuple[str | None, Exception | None]:
    """Name of the region's image, or why there is none."""
    names = list(sdata.images)
    if isinstance(image_key, Mapping):
        if region not in image_key:
            raise DataError(f"image_key names no image for region {region!r}; it has {list(image_key)}.")
        image_key = image_key[region]
    if image_key is not None:
        if image_key not in names:
            raise DataError(
                f"the SpatialData has no image {image_key!r}; there are {names}.{nearest(image_key, names)}"
            )
        return image_key, None
    if not names:
        return None, None
    systems = set(_affines(sdata.shapes[region]))
    near = [name for name in names if systems & set(_affines(sdata.images[name]))]
    if len(near) == 1 or recorded in near:
        return recorded if recorded in near else near[0], None
    if near:
        why = f"share a coordinate system with region {region!r}: name one with image_key="
        return None, DataError(f"{len(near)} images, {near}, {why}.")
    return None, ImageError(_apart(sdata, region, names))


def _apart(sdata: SpatialData, region: str, names: Iterable[str]) -> str:
    images = {name: list(_affines(sdata.images[name])) for name in names}
    return (
        f"region {region!r} lies in the coordinate systems {list(_affines(sdata.shapes[region]))}, the images in "
        f"{images}: none is shared; set one with spatialdata.transformations.set_transformation."
    )


def _affines(element: Any) -> dict[str, np.ndarray]:
    """3 x 3 matrices that take (x, y, 1) of an element to each of its coordinate systems."""
    from spatialdata.transformations import get_transformation

    axes = ("x", "y")
    found = get_transformation(element, get_all=True)
    return {name: np.asarray(found[name].to_affine_matrix(axes, axes), dtype=np.float64) for name in found}


def _to_pixels(sdata: SpatialData, region: str, name: str) -> np.ndarray:
    """Matrix from coordinates of the shapes to pixels of the image, through the coordinate systems they share."""
    ours, theirs = _affines(sdata.shapes[region]), _affines(sdata.images[name])
    shared = [system for system in ours if system in theirs]
    if not shared:
        raise DataError(_apart(sdata, region, [name]))
    matrices = [np.linalg.solve(theirs[system], ours[system]) for system in shared]
    left, top, right, bottom = sdata.shapes[region].total_bounds
    corners = np.array([[left, right, left, right], [top, top, bottom, bottom], [1, 1, 1, 1]])
    shift = max(float(np.abs((matrix - matrices[0]) @ corners).max()) for matrix in matrices)
    if shift > SAME_PLACE:
        raise DataError(
            f"region {region!r} and image {name!r} share the coordinate systems {shared}, which place spots up to "
            f"{shift:.1f} pixels apart; remove what does not hold with "
            "spatialdata.transformations.remove_transformation."
        )
    return matrices[0]


def _place_image(entry: Entry, image: Any, scale: float) -> None:
    """Refer to the image in an entry of ``uns["spatial"]``, without reading pixels."""
    levels = _levels(image)
    full = levels[0]
    if scale < 1:
        entry["images"]["hires"] = full.data.transpose(1, 2, 0)
        entry["scalefactors"]["tissue_hires_scalef"] = scale
        return
    if (path := _stored_at(full.data)) is not None:
        entry["metadata"]["source_image_path"] = path
    else:
        entry["images"]["fullres"] = full.data.transpose(1, 2, 0)
    enough = [level for level in levels if max(level.shape[1:]) >= THUMBNAIL_PX]
    small = enough[-1] if enough else full
    entry["images"]["hires"] = _Thumbnail(small.data)
    longest = max(full.shape[1:])
    entry["scalefactors"]["tissue_hires_scalef"] = min(1.0, THUMBNAIL_PX / longest)


def _levels(image: Any) -> list[Any]:
    """DataArrays (c, y, x) of an image, the largest first, channels in the order r, g, b where they are named so."""
    if hasattr(image, "subtree"):
        levels = [next(iter(node.ds.values())) for node in image.children.values()]
    else:
        levels = [image]
    if set(levels[0].dims) != {"c", "y", "x"}:
        raise ImageError(f"an image has the dimensions {levels[0].dims}; expected c, y and x: choose a plane of it.")
    levels = [level.transpose("c", "y", "x") for level in levels]
    channels = [str(name).lower() for name in levels[0].coords["c"].values]
    if sorted(channels) == ["b", "g", "r"] and channels != ["r", "g", "b"]:
        levels = [level.isel(c=[channels.index(name) for name in "rgb"]) for level in levels]
    return levels


def _stored_at(data: Any) -> str | None:
    """Folder of the zarr array that a dask array is, as it is; None for whatever was computed or lies elsewhere."""
    from zarr import Array
    from zarr.storage import LocalStore

    if not getattr(data, "name", "").startswith("from-zarr"):
        return None
    arrays = [value for value in data.dask.layers.get(f"original-{data.name}", {}).values() if isinstance(value, Array)]
    if len(arrays) != 1 or not isinstance(arrays[0].store, LocalStore) or arrays[0].shape != data.shape:
        return None
    return str((arrays[0].store.root / arrays[0].path).resolve())


def _pixel_size(systems: Mapping[str, np.ndarray], scale: float = 1.0) -> dict[str, Any]:
    """Micrometres per full-resolution pixel, by matrices from pixels, where one leads to a system of micrometres."""
    for name, matrix in systems.items():
        if name.lower() in MICROMETRES:
            along_x, along_y = scale * np.hypot(matrix[0, :2], matrix[1, :2])
            if abs(along_x / along_y - 1) > SQUARE:
                logger.warning("pixels are %.4g x %.4g um: not square, so their size is unknown.", along_x, along_y)
                return {}
            mpp = float(np.sqrt(along_x * along_y))
            return {"mpp": mpp, "mpp_source": f"transformation to the coordinate system {name!r}"}
    return {}


# -- verbs -----------------------------------------------------------------------------------------------------------


class _View:
    """The AnnData that a verb gets for a SpatialData object."""

    def __init__(self, sdata: SpatialData, table_key: str | None, image_key: ImageKey) -> None:
        self.sdata = sdata
        self.table_key, self.table = pick_table(sdata, table_key)
        self.adata = as_anndata(sdata, table_key=table_key, image_key=image_key)
        self._before = shallow(self.adata)
        self._entries = {
            library: {part: dict(values) for part, values in entry.items()}
            for library, entry in self.adata.uns[keys.SPATIAL].items()
        }

    def write_back(self, table: AnnData) -> None:
        """Set in a table what the verb wrote, and delete what it deleted; coordinates and images stay out."""
        for name in ("obs", "var"):
            before, after = getattr(self._before, name), getattr(self.adata, name)
            for column in after:
                if column != keys.LIBRARY and (column not in before or not after[column].equals(before[column])):
                    getattr(table, name)[column] = after[column]
        for name in MAPPINGS:
            before, after = _slots(self._before, name), _slots(self.adata, name)
            for key in before.keys() - after.keys():
                del getattr(table, name)[key]
            for key, value in after.items():
                if key != keys.SPATIAL and value is not before.get(key):
                    getattr(table, name)[key] = value
        self._write_back_slides(table)

    def _write_back_slides(self, table: AnnData) -> None:
        for library, entry in self.adata.uns[keys.SPATIAL].items():
            for part, values in entry.items():
                before = self._entries.get(library, {}).get(part, {})
                new = {key: value for key, value in values.items() if value is not before.get(key)}
                if new:
                    slide = table.uns.setdefault(keys.SPATIAL, {}).setdefault(library, {})
                    slide.setdefault(part, {}).update(new)

    def own(self, result: AnnData) -> AnnData:
        """A new AnnData that the verb made, with coordinates and images as the table has them."""
        for mapping, key in (("obs", keys.LIBRARY), ("obsm", keys.SPATIAL), ("uns", keys.SPATIAL)):
            if key in getattr(self.table, mapping):
                getattr(result, mapping)[key] = getattr(self.table, mapping)[key]
            else:
                del getattr(result, mapping)[key]
        return result

    def sdata_with(self, table: AnnData) -> SpatialData:
        """A SpatialData with another table in the place of this one; the other elements are shared."""
        from spatialdata import SpatialData

        elements = {name: element for _, name, element in self.sdata.gen_elements()}
        return SpatialData.init_from_elements({**elements, self.table_key: table}, attrs=dict(self.sdata.attrs))


class Verb(Protocol[P, R]):
    """A verb for AnnData that takes SpatialData objects too."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, *args: Any, table_key: str | None = None, image_key: ImageKey = None, **kwargs: Any) -> Any: ...


def takes_spatialdata(verb: Callable[P, R]) -> Verb[P, R]:
    """Let a verb take SpatialData objects where it takes AnnData objects: first, in a list, as reference or validation.

    The verb sees :func:`as_anndata`. What it writes goes into the table; with ``copy=True``, or where it returns a new
    AnnData, into the table of a new SpatialData that shares the other elements. A reference and a validation are only
    read: ``image_key`` is not for them. Signature and documentation are extended by ``table_key`` and ``image_key``.
    """
    signature = inspect.signature(verb)
    first = next(iter(signature.parameters))

    @functools.wraps(verb)
    def wrapper(*args: Any, table_key: str | None = None, image_key: ImageKey = None, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        arguments, views, references = bound.arguments, list[_View](), list[_View]()
        arguments[first] = _resolved(arguments[first], views, table_key, image_key)
        for name in ("reference", "validation"):
            other: Any = arguments.get(name)
            if is_spatialdata(other):
                known = table_key if table_key in other.tables else None
                arguments[name] = _resolved(other, references, known, None)
        if not views and not references and (table_key, image_key) != (None, None):
            raise DataError("table_key= and image_key= are for SpatialData objects; there is none among the arguments.")
        copy = bool(views) and arguments.pop("copy", False)
        result = verb(*bound.args, **bound.kwargs)
        if views and isinstance(result, AnnData):
            return views[0].sdata_with(views[0].own(result))
        tables = [view.table.copy() if copy else view.table for view in views]
        for view, table in zip(views, tables, strict=True):
            view.write_back(table)
        return views[0].sdata_with(tables[0]) if copy else result

    wrapper.__doc__, shown = _extended(verb, signature)
    wrapper.__signature__ = shown  # type: ignore[attr-defined]
    wrapper.__annotations__ = {name: p.annotation for name, p in shown.parameters.items()}
    wrapper.__annotations__["return"] = shown.return_annotation
    return cast("Verb[P, R]", wrapper)


def _resolved(value: Any, views: list[_View], table_key: str | None, image_key: ImageKey) -> Any:
    """The argument with AnnData objects in the place of SpatialData objects."""
    if isinstance(value, list | tuple):
        return [_resolved(item, views, table_key, image_key) for item in value]
    if not is_spatialdata(value):
        return value
    views.append(_View(value, table_key, image_key))
    return views[-1].adata


def _extended(verb: Callable[..., Any], signature: inspect.Signature) -> tuple[str, inspect.Signature]:
    """Documentation and signature with the two arguments."""
    parameters = [
        p.replace(annotation=str(p.annotation).replace("AnnData", "AnnData | SpatialData"))
        for p in signature.parameters.values()
    ]
    for name, kind in (("table_key", "str | None"), ("image_key", "str | Mapping[str, str] | None")):
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))
    returns = str(signature.return_annotation).replace("AnnData", "AnnData | SpatialData")
    head, *tail = inspect.cleandoc(verb.__doc__ or "").partition("\n\nReturns\n")
    return head + TAKES + "".join(tail), signature.replace(parameters=parameters, return_annotation=returns)
