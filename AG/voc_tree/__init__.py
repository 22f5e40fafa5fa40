"""Retrieval by visual words: codebook, quantisation, inverted file, score, verification."""
