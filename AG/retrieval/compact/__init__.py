"""Local features in fewer bytes: the forms in which a store keeps them, and stores made smaller."""
