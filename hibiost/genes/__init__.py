"""Genes: the vocabulary, TF-IDF weights and sentences, gene sets. Arrays in, arrays out."""

from .enrichment import Enrichment, enrichment
from .genesets import GeneSets
from .overlap import Overlaps, overlap_coefficients
from .tfidf import document_frequency, idf, select_genes, tfidf, top_genes
from .vocabulary import Vocabulary

__all__ = [
    "Enrichment",
    "GeneSets",
    "Overlaps",
    "Vocabulary",
    "document_frequency",
    "enrichment",
    "idf",
    "overlap_coefficients",
    "select_genes",
    "tfidf",
    "top_genes",
]
