"""Files of every layout -> the AnnData of the contract, and back."""

from ._concat import concat
from ._corpus import Corpus
from ._hest import read_hest, write_hest
from ._image import read_image
from ._spatialdata import from_spatialdata, to_spatialdata
from ._st import read_st
from ._visium import read_visium
from ._visium_hd import read_visium_hd
from ._vocabulary import fit_vocabulary

__all__ = [
    "Corpus",
    "concat",
    "fit_vocabulary",
    "from_spatialdata",
    "read_hest",
    "read_image",
    "read_st",
    "read_visium",
    "read_visium_hd",
    "to_spatialdata",
    "write_hest",
]
