"""Look into a network: the attention map of a photo, the matches of two photos.

show.py attention --resume_model M --image PHOTO --output PNG
show.py matches --resume_model M --query PHOTO --database PHOTO --output PNG
"""

import logging
from collections.abc import Sequence

from retrieval import delg, evaluation_options, images, options, pictures, plots, training

log = logging.getLogger("show")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the picture that the first word names, and say where it is."""
    asked = evaluation_options.read_show(__doc__, argv)
    for photo in asked.photos:
        images.image_size(photo)  # a wrong path is said before the network is loaded
    model, loaded = delg.create(asked.network, asked.weights)
    evaluation_options.check_weights_suffice(asked.weights, asked.network, loaded, with_local=True)
    model.to(training.choose_device(asked.device))
    if asked.picture == "attention":
        figure = pictures.attention(model, asked.photos[0], asked.extract, asked.count)
    else:
        query, database = asked.photos
        figure = pictures.matches(
            model, query, database, asked.extract, asked.rerank.match, asked.rerank.verify
        )
    plots.save(figure, asked.output)
    log.info("%s", asked.output)


if __name__ == "__main__":
    options.run(main)
