import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibiost.model.tokens import END, PAD, START, SentenceTokenizer, metadata_words

WORDS = ["organ:breast", "species:homo sapiens"]


def brute_force(sentence, words, known, context):
    """Start, metadata, genes in order as far as they fit, end, padding."""
    prefix = [START] + [END + 1 + known.index(word) for word in words if word in known]
    genes = [gene + END + 1 + len(known) for gene in sentence if gene >= 0]
    row = prefix + genes[: context - len(prefix) - 1] + [END]
    return row + [PAD] * (context - len(row))


@given(
    sentences=st.integers(1, 12).flatmap(
        lambda n: st.lists(st.lists(st.integers(-1, 30), min_size=n, max_size=n), min_size=1, max_size=5)
    ),
    words=st.lists(st.sampled_from([*WORDS, "organ:unknown"]), unique=True),
)
def test_rows_equal_brute_force(sentences, words):
    tokenizer = SentenceTokenizer(31, WORDS, 10)
    rows = tokenizer(np.array(sentences), words)
    assert rows.dtype == np.int32
    assert rows.tolist() == [brute_force(sentence, words, WORDS, 10) for sentence in sentences]


def test_gene_tokens_are_distinct_from_all_others():
    tokenizer = SentenceTokenizer(2, WORDS, 8)
    row = tokenizer(np.array([[0, 1]]), WORDS)[0]
    assert len(set(row[:6].tolist())) == 6
    assert row.max() == tokenizer.vocab_size - 1


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, []),
        ({"organ": " Breast ", "mpp": 0.5}, ["organ:breast"]),
        ({"st_technology": "Visium", "species": "Homo sapiens"}, ["species:homo sapiens", "st_technology:visium"]),
        ({"organ": ""}, []),
    ],
)
def test_metadata_words(metadata, words):
    assert metadata_words(metadata) == words
