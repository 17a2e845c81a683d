"""Names of the AnnData slots that hibiost reads and writes: the only place where they are spelled."""

from __future__ import annotations

LIBRARY = "library_id"
"""``obs``: the slide a spot belongs to; also the key of that slide in ``uns["spatial"]``."""
PATIENT = "patient"
"""``obs``: the patient (or individual) a slide comes from."""
BARCODE = "barcode"
"""``obs``: the name of a spot in its patch file, where the AnnData names it otherwise."""
SPATIAL = "spatial"
"""``obsm``: spot centres (x, y) in full-resolution pixels; ``uns``: scanpy's layout of images and scale factors."""

TFIDF = "tfidf"
"""``layers``: TF-IDF weights."""
SENTENCE = "gene_sentence"
"""``obsm``: gene sentences as indices; ``uns``: the genes they index and the parameters."""
IDF = "idf"
"""``var``: inverse document frequency."""
N_SPOTS = "n_spots"
"""``var``: the number of spots with a count above zero."""

EMBED = "X_hibiost"
"""``uns``: model and parameters of the embeddings; prefix of the two slots below."""
IMAGE_EMBEDDING = f"{EMBED}_image"
"""``obsm``: l2-normalised image embeddings."""
GENE_EMBEDDING = f"{EMBED}_gene"
"""``obsm``: l2-normalised gene-sentence embeddings."""

OVERLAP = "pathway_overlap"
"""``obsm``: overlap of each spot's sentence with each pathway; ``uns``: names of the pathways and parameters."""
REGION = "region"
"""``obs``: the region of each spot; ``obsp``: with ``_distances`` and ``_connectivities``, the graph behind it."""
REGION_HISTORY = "region_history"
"""``obsm``: the regions of each renewal during training, a DataFrame; ``uns``: its parameters."""

CLUSTER = "cluster"
"""``obs``: clusters after smoothing; with the suffix ``_raw``, before."""
PREDICTED = "predicted_expression"
"""``obsm``: predicted log1p expression, a DataFrame; ``uns``: its parameters."""

KEYWORDS = "rank_keywords"
"""``uns``: keyword genes of each group, as scanpy ranks genes; with the suffix ``_pathways``, pathways."""
RETRIEVED = "retrieved"
"""``obsm``: rows of the best matches in a reference; with ``_similarity``, their cosines; ``uns``: whose rows."""
SCORE = "pathway_score"
"""``obsm``: how much each spot's image looks like a signature, a DataFrame; ``uns``: genes and parameters."""

TISSUE_MASK = "tissue_mask"
"""``uns``: where each slide shows tissue, at the resolution of a thumbnail, and parameters."""

GRID = "grid"
"""``uns``: parameters of the grid on which spots were placed."""

MEASURED = "measured"
"""``varm``: a bool DataFrame, genes x slides: whether the slide measured the gene at all."""

MAP_GENES = "map_genes"
"""``uns``: what became of the genes when they were renamed, and the parameters."""
ORIGINAL = "original_name"
"""``var``: the names under which a gene stood before it was renamed, joined by ``;``."""
