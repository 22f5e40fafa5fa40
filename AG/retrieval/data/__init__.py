"""Photos and what is known of them: images, places, ground truth, photo sets, downloads."""
