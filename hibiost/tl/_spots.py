"""The spots that a model is trained on, or measured on: collected, tokenised, and their patches decoded."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from .. import inputs
from .._files import replacing
from ..errors import DataError, HibiostError, ImageError
from ..genes.vocabulary import metadata_words
from ..io import Corpus
from ..settings import logger, settings
from ._resolve import new_sentences

if TYPE_CHECKING:
    from anndata import AnnData

    from .._ranks import Ranks
    from ..genes import Vocabulary
    from ..model import HibioModel
    from ..train import Pairs, PatchStore

T = TypeVar("T")
_Parts: TypeAlias = tuple[list[inputs.Slide], np.ndarray, dict[str, list[str]]]


def sources(adata: Any, layer: str | None, library_key: str, *, unreadable: str = "stop") -> list[AnnData] | Corpus:
    """AnnData as they are; files as a corpus, checked, of which one slide is in memory at a time."""
    several = [adata] if isinstance(adata, str | os.PathLike) else adata
    if isinstance(several, Sequence):
        if not several:
            raise DataError("no AnnData to train on; the list is empty.")
        if not any(isinstance(each, str | os.PathLike) for each in several):
            return list(several)
        several = Corpus(several, layer=layer, library_key=library_key)
    if not isinstance(several, Corpus):
        return [several]
    if unreadable == "skip" and not several.index["usable"].all():
        bad = several.problems[several.problems["blocking"]]
        logger.warning(
            "%d of %d slides cannot be used and are left out:\n%s",
            bad["slide"].nunique(),
            len(several),
            "\n".join(f"  {slide}: {problem}" for slide, problem in zip(bad["slide"], bad["problem"], strict=True)),
        )
        several = several.select("usable")
    several.check()
    return several


def of_each(corpus: Corpus, ranks: Ranks, function: Callable[[Corpus], list[T]]) -> list[T]:
    """Results of all slides of a corpus, of which each process reads a part."""
    ids = np.array_split(corpus.index.index.to_numpy(), ranks.size)[ranks.rank]
    own = function(corpus.select(ids)) if len(ids) else []
    return [result for part in ranks.collect(own) for result in part]


def parts(adata: AnnData, *, library_key: str, **options: Any) -> _Parts:
    """What training takes from an AnnData: its slides, the sentences of its spots, the metadata words of each slide."""
    slides = inputs.slides(adata, library_key)
    words = {slide.library_id: metadata_words(inputs.slide_metadata(adata, slide.library_id)) for slide in slides}
    return slides, new_sentences(adata, library_key=library_key, **options), words


def _of_all(corpus: Corpus, **options: Any) -> list[_Parts]:
    return list(corpus.map(parts, **options))


def _of_readable(corpus: Corpus, **options: Any) -> list[_Parts]:
    """Of each slide that can be read; the others are named."""
    found: list[_Parts] = []
    for slide in corpus.index.index:
        try:
            found += corpus.select([slide]).map(parts, **options)
        except HibiostError as error:
            logger.warning("slide %r is left out: %s", slide, error)
    return found


@dataclass(frozen=True)
class Spots:
    """Spots with a sentence, slide after slide.

    Attributes
    ----------
    slides
        Each with these spots only.
    source
        The AnnData of each slide.
    sentences
        int32, n_spots x n_genes: indices into the vocabulary.
    words
        Metadata words of each slide.
    """

    slides: list[inputs.Slide]
    source: np.ndarray
    sentences: np.ndarray
    words: list[list[str]]

    @classmethod
    def collected(
        cls,
        adatas: list[AnnData] | Corpus,
        ranks: Ranks,
        *,
        vocabulary: Vocabulary,
        library_key: str,
        unreadable: str = "stop",
        **options: Any,
    ) -> Spots:
        """From AnnData or a corpus, with a vocabulary's idf."""
        options |= {"vocabulary": vocabulary, "library_key": library_key}
        if isinstance(adatas, Corpus):
            every = _of_readable if unreadable == "skip" else _of_all
            found = of_each(adatas, ranks, partial(every, **options))
        else:
            found = [parts(adata, **options) for adata in adatas]
        if not found:
            raise DataError("not one slide could be read; see the warnings above.")
        chosen, source, tables, words = [], [], [], []
        for number, (slides, sentences, of_slides) in enumerate(found):
            for slide in slides:
                spoken = (sentences[slide.rows] >= 0).any(axis=1)
                chosen.append(replace(slide, rows=slide.rows[spoken], xy=slide.xy[spoken]))
                source.append(number)
                tables.append(sentences[slide.rows[spoken]])
                words.append(of_slides[slide.library_id])
        spots = cls(chosen, np.array(source), np.concatenate(tables), words)
        if silent := sum(len(sentences) for _, sentences, _ in found) - len(spots):
            logger.info("%d spots without a single keyword gene are left out", silent)
        return spots

    def __len__(self) -> int:
        return len(self.sentences)

    @property
    def starts(self) -> np.ndarray:
        """The first spot of each slide, and the number of all."""
        return np.cumsum([0, *(len(slide.rows) for slide in self.slides)])

    @property
    def slide(self) -> np.ndarray:
        """The slide of each spot."""
        return np.repeat(np.arange(len(self.slides)), np.diff(self.starts))

    @property
    def xy(self) -> np.ndarray:
        """Spot centres, n_spots x 2."""
        return np.concatenate([slide.xy for slide in self.slides])

    @property
    def median_mpp(self) -> float | None:
        """Micrometres per pixel, where any slide tells."""
        known = [slide.mpp for slide in self.slides if slide.mpp is not None]
        return float(np.median(known)) if known else None

    def tokens(self, model: HibioModel) -> np.ndarray:
        """Rows of token ids, int32, n_spots x context."""
        tables = np.split(self.sentences, self.starts[1:-1])
        return np.concatenate([model.tokenizer(table, words) for table, words in zip(tables, self.words, strict=True)])

    def fingerprints(self) -> dict[str, dict[str, int]]:
        """What would tell that a slide's spots, sentences or metadata have changed."""
        return {
            self._name(number): {
                "n_spots": int(stop - start),
                "crc": zlib.crc32(self.sentences[start:stop].tobytes() + slide.xy.tobytes() + repr(words).encode()),
            }
            for number, (slide, words, start, stop) in enumerate(
                zip(self.slides, self.words, self.starts[:-1], self.starts[1:], strict=True)
            )
        }

    def _name(self, number: int) -> str:
        return f"{self.source[number]}/{self.slides[number].library_id}"

    def without(self, slides: Sequence[int]) -> tuple[Spots, np.ndarray]:
        """The spots of the other slides, and which they are."""
        kept = ~np.isin(self.slide, slides)
        others = [number for number in range(len(self.slides)) if number not in slides]
        chosen, words = [self.slides[number] for number in others], [self.words[number] for number in others]
        return Spots(chosen, self.source[others], self.sentences[kept], words), np.flatnonzero(kept)

    def store(
        self, store: PatchStore, model: HibioModel, ranks: Ranks, *, side: int, unreadable: str
    ) -> tuple[dict[str, int], list[int]]:
        """Decode the patches; each process takes some slides.

        Returns
        -------
        CRC-32 of the patches of each slide, and the slides that could not be read, where these are skipped.
        """
        if ranks.first:
            store.create()
        ranks.wait()
        crcs, bad = {}, []
        mine = range(ranks.rank, len(self.slides), ranks.size)
        with _bar(sum(len(self.slides[number].rows) for number in mine)) as bar:
            for number in mine:
                try:
                    crcs[self._name(number)] = store.write(
                        int(self.starts[number]), self._patches(number, model, side, bar)
                    )
                except ImageError as error:
                    if unreadable == "stop":
                        raise
                    logger.warning("slide %r is left out: %s", self.slides[number].library_id, error)
                    bad.append(number)
        ranks.wait()
        found = {name: crc for part in ranks.collect(crcs) for name, crc in part.items()}
        return found, sorted(number for part in ranks.collect(bad) for number in part)

    def _patches(self, number: int, model: HibioModel, side: int, bar: Any) -> Iterator[np.ndarray]:
        config, slide = model.config, self.slides[number]
        window = round(config.patch_size * side / config.image_size)
        try:
            for patches in slide.iter_patches(size=window, mpp=config.mpp, output=side):
                yield patches
                bar.update(len(patches))
        except ImageError as error:
            raise ImageError(f"slide {slide.library_id!r}: {error}") from error

    def check_scale(self, model: HibioModel, side: int) -> None:
        """Refuse a pixel size that is needed and not known, before anything is decoded."""
        for slide in self.slides:
            slide.window(round(model.config.patch_size * side / model.config.image_size), model.config.mpp)

    def stamps(self, side: int) -> dict[str, Any] | None:
        """What tells whether decoded patches are still those of the files; nothing does for pixels in memory."""
        files = [slide.patches if slide.image is None else slide.image for slide in self.slides]
        if not all(isinstance(file, str) for file in files):
            return None
        stats = [os.stat(str(file)) for file in files]
        named = {
            self._name(number): [str(file), stat.st_size, stat.st_mtime_ns]
            for number, (file, stat) in enumerate(zip(files, stats, strict=True))
        }
        return {"side": side, "crc": zlib.crc32(self.xy.tobytes()), "files": named}


def _bar(total: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="read patches", unit=" spots", disable=not settings.progress)


def decoded(
    spots: Spots, path: Path, model: HibioModel, ranks: Ranks, *, shift: float = 0.0, unreadable: str = "stop"
) -> tuple[Pairs, Spots, dict[str, int]]:
    """Pairs of patches and sentences; patches that are there from a run that was interrupted are taken as they are.

    Parameters
    ----------
    spots
        The spots.
    path
        The file of the patches; beside it goes one that tells what it holds.
    model
        Says how patches are cut, and makes tokens.
    ranks
        The processes that share the work and the file.
    shift
        Margin around the patches, as a share of their side.
    unreadable
        ``"stop"`` or ``"skip"`` slides whose image cannot be read.

    Returns
    -------
    The pairs, the spots that they are of, and the CRC-32 of each slide's patches.
    """
    from ..train import Pairs, PatchStore
    from ..train.store import stored_side

    side = stored_side(model.config.image_size, shift)
    spots.check_scale(model, side)
    store, note, stamps = PatchStore(path, len(spots), side), path.with_suffix(".json"), spots.stamps(side)
    known = json.loads(note.read_text()) if note.exists() and path.exists() else {}
    ranks.wait()
    if stamps is not None and known.get("stamps") == json.loads(json.dumps(stamps)):
        logger.info("patches are taken from %s", path)
        crcs, bad = known["crcs"], known["bad"]
    else:
        if ranks.first:
            note.unlink(missing_ok=True)
        crcs, bad = spots.store(store, model, ranks, side=side, unreadable=unreadable)
        if ranks.first and stamps is not None:
            with replacing(note) as file:
                file.write_text(json.dumps({"stamps": stamps, "crcs": crcs, "bad": bad}))
    if not bad:
        return Pairs(store.read(), spots.tokens(model)), spots, crcs
    logger.warning("%d of %d slides are left out: their patches cannot be read", len(bad), len(spots.slides))
    if len(bad) == len(spots.slides):
        raise ImageError("not one slide could be read; see the warnings above.")
    kept, rows = spots.without(bad)
    return Pairs(store.read(), kept.tokens(model), rows), kept, crcs
