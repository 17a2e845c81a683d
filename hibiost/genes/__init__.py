"""Genes: the vocabulary, TF-IDF weights and sentences. Arrays in, arrays out."""

from .tfidf import document_frequency, idf, tfidf, top_genes
from .vocabulary import Vocabulary

__all__ = ["Vocabulary", "document_frequency", "idf", "tfidf", "top_genes"]
