"""Networks: backbones, DELG, DELF, and the weights that fill them."""
