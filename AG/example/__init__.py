"""DELF: fine-tune a network for retrieval, train its attention, extract its features."""
