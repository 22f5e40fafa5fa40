"""SIFT features for the vocabulary tree."""
