"""Model cards: what is known of a model, as Markdown in the format of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ModelError, nearest

FILE = "README.md"
KEYS: dict[str, type] = {
    "name": str,
    "licence": str,
    "datasets": list,
    "data": str,
    "evaluation": str,
    "limitations": str,
    "command": str,
    "hardware": str,
    "duration": str,
    "environment": dict,
}
"""What a card tells beyond the training itself, and its type."""
_TAGS = ["histology", "pathology", "spatial-transcriptomics", "gene-expression", "hibio-st"]
_UNTOLD = "Not told."
_FOLDER = "path/to/the/folder"


def checked(card: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a card, as plain JSON values.

    Raises
    ------
    ModelError
        An unknown entry, or one of another type.
    """
    for key, value in card.items():
        if key not in KEYS:
            raise ModelError(f"a card has no entry {key!r}; the entries are {list(KEYS)}.{nearest(key, KEYS)}")
        parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if not isinstance(value, KEYS[key]) or not all(isinstance(part, str) for part in parts):
            kind = {"str": "text", "list": "a list of texts", "dict": "a dict of texts"}[KEYS[key].__name__]
            raise ModelError(f"the entry {key!r} of a card is {value!r}; expected {kind}.")
    return dict(card)


def markdown(about: Mapping[str, Any], source: str | None = None) -> str:
    """The card of a model.

    Parameters
    ----------
    about
        What its ``config.json`` tells.
    source
        What :func:`hibiost.model.load` finds it by.
    """
    from huggingface_hub import ModelCardData

    card, training = _mapping(about.get("card")), _mapping(about["training"])
    data = ModelCardData(
        license=card.get("licence"),
        datasets=card.get("datasets"),
        tags=_TAGS,
        library_name="hibiost",
        pipeline_tag="feature-extraction",
    )
    sections = {
        "How to use it": _usage(source or card.get("name", _FOLDER)),
        "Training data": _data(about, training, card),
        "Recipe": _recipe(training),
        "Evaluation": card.get("evaluation", _UNTOLD),
        "Intended use": _USE,
        "Known failures": card.get("limitations", _UNTOLD),
        "Licence": _licence(training, card),
        "Environment": _environment(card),
    }
    parts = [f"# {card.get('name', 'A HiBio-ST model')}", _what(about)]
    parts += [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


_USE = (
    "Research on H&E-stained tissue and spatial transcriptomics: embeddings of image patches and of gene sentences, "
    "regions and clusters of spots, expression that is predicted from images.\n\n"
    "**Not for clinical use.** It is no medical device and was not validated for diagnosis, prognosis or the choice of "
    "a treatment."
)


def trained_on(training: Mapping[str, Any]) -> str:
    """How many spots of how many slides, as far as it is told."""
    slides, spots = training.get("slides"), training.get("n_spots")
    counted = [f"{spots:,} spots"] if isinstance(spots, int) else []
    counted += [f"{len(slides)} slides"] if isinstance(slides, Sequence) else []
    return " of ".join(counted) or "not told"


def _what(about: Mapping[str, Any]) -> str:
    config = about["config"]
    mpp = config.get("mpp")
    scale = "of the full-resolution image" if mpp is None else f"at {mpp:g} µm per pixel"
    return (
        "An image tower and a gene-sentence tower in one space, trained by hibiost as in HiBio-ST. Embeddings have "
        f"{config['embed_dim']} dimensions. "
        f"Images are patches of {config.get('patch_size', 224)} pixels {scale}; gene sentences are read with a "
        f"vocabulary of {len(about['vocabulary']['genes']):,} genes. Fingerprint of the weights: "
        f"`{about['fingerprint']}`."
    )


def _usage(source: str) -> str:
    return _code(
        "python",
        "import hibiost as hb\n\n"
        f"model = hb.model.load({json.dumps(source)})\n"
        "hb.pp.tfidf_sentences(adata, vocabulary=model.vocabulary)  # adata: an AnnData with counts and an H&E image\n"
        "hb.tl.embed(adata, model=model)",
    )


def _data(about: Mapping[str, Any], training: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    started = _mapping(training.get("image_encoder"))
    slides, mpp = training.get("slides"), training.get("mpp")
    lines = [
        card.get("data"),
        f"Trained on {trained_on(training)}." if trained_on(training) != "not told" else None,
        f"Slides: {', '.join(f'`{slide}`' for slide in slides)}." if isinstance(slides, Sequence) and slides else None,
        f"Median pixel size of their images: {mpp:g} µm." if isinstance(mpp, int | float) else None,
        f"Metadata words: {', '.join(f'`{word}`' for word in about['metadata'])}." if about["metadata"] else None,
        f"The image tower started from {started['name']} ({started.get('source', 'source not told')})."
        if "name" in started
        else None,
    ]
    return "\n\n".join(line for line in lines if line) or _UNTOLD


def _recipe(training: Mapping[str, Any]) -> str:
    told = {key: training[key] for key in ("seed", "pathways", "recipe") if training.get(key) is not None}
    return _code("json", json.dumps(told, indent=1)) if told else ""


def _licence(training: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    started = _mapping(training.get("image_encoder"))
    lines = [card.get("licence", _UNTOLD)]
    if "name" in started:
        lines.append(
            f"The image tower started from {started['name']}, whose licence is {started.get('licence', 'not told')}; "
            "a model inherits the terms of the weights it started from."
        )
    return "\n\n".join(lines)


def _environment(card: Mapping[str, Any]) -> str:
    told = {**_mapping(card.get("environment")), **{key: card[key] for key in ("hardware", "duration") if key in card}}
    lines = ["\n".join(f"- {key}: {value}" for key, value in told.items())] if told else []
    lines += [_code("sh", card["command"])] if "command" in card else []
    return "\n\n".join(lines)


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
