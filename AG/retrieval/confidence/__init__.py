"""How sure a first answer is, and what is gained by withholding those that are not."""
