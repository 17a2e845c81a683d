"""Genes: the vocabulary, TF-IDF weights and sentences, gene sets. Arrays in, arrays out."""

from .genesets import GeneSets
from .tfidf import document_frequency, idf, tfidf, top_genes
from .vocabulary import Vocabulary

__all__ = ["GeneSets", "Vocabulary", "document_frequency", "idf", "tfidf", "top_genes"]
