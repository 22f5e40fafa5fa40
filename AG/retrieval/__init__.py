"""Visual place recognition and landmark retrieval with local features: the shared library.

Two ways of ranking a database for a query photo meet at two types: `features.LocalFeatures` and a
``ranking``, an array (Q, K) of database rows, best first. Nothing here parses flags or prints.
"""
