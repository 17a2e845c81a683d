"""From gene sentences to token ids: one token per gene, no subwords."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..genes.vocabulary import metadata_words as metadata_words

PAD, START, END = 0, 1, 2
"""Ids of the special tokens; metadata tokens follow, then the genes in the order of the vocabulary."""


class SentenceTokenizer:
    """Turns sentences, as indices into a vocabulary, into rows of token ids.

    A row is start, metadata, genes, end, padding (HiBio-ST, section 2.1 and C.1).

    Parameters
    ----------
    n_genes
        Size of the vocabulary.
    metadata
        Metadata words that have a token; other words are left out of a sentence.
    context_length
        Length of a row.
    """

    def __init__(self, n_genes: int, metadata: Sequence[str], context_length: int) -> None:
        self.metadata = list(metadata)
        self.context_length = context_length
        self._word_ids = {word: END + 1 + i for i, word in enumerate(self.metadata)}
        self.first_gene = END + 1 + len(self.metadata)
        self.vocab_size = self.first_gene + n_genes

    def max_genes(self, words: Sequence[str] = ()) -> int:
        """How many genes fit a row beside start, end and these metadata words."""
        return self.context_length - 2 - sum(word in self._word_ids for word in words)

    def __call__(self, sentences: np.ndarray, words: Sequence[str] = ()) -> np.ndarray:
        """Token ids of sentences.

        Parameters
        ----------
        sentences
            int, n_spots x n_genes: indices into the vocabulary, best first; negative entries are skipped.
        words
            Metadata words of the slide.

        Returns
        -------
        int32, n_spots x ``context_length``. Genes beyond :meth:`max_genes` are cut off, the least weighty first.
        """
        prefix = [START, *(self._word_ids[word] for word in words if word in self._word_ids)]
        rows = np.full((len(sentences), self.context_length), PAD, dtype=np.int32)
        rows[:, : len(prefix)] = prefix
        present = sentences >= 0
        place = np.cumsum(present, axis=1) - 1
        keep = present & (place < self.max_genes(words))
        spot, column = np.nonzero(keep)
        rows[spot, len(prefix) + place[spot, column]] = sentences[spot, column] + self.first_gene
        rows[np.arange(len(rows)), len(prefix) + keep.sum(axis=1)] = END
        return rows


def trimmed(tokens: np.ndarray, *, multiple: int = 8) -> np.ndarray:
    """Rows of token ids without the columns that are padding in all of them, but for a length of ``multiple``.

    The gene tower is causal and pooled at the end token, so what follows it changes nothing.
    """
    longest = int((tokens != PAD).sum(axis=1).max(initial=1))
    return tokens[:, : -(-longest // multiple) * multiple]
