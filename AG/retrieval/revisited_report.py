"""The printed lines of a test on revisited sets, in the form that S2 and cirtorch print them."""

from collections.abc import Mapping

import numpy as np


def revisited_lines(dataset: str, figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """``>> roxford5k: mAP E: 69.74, M: …`` and ``>> roxford5k: mP@k[1, 5, 10] E: [86.76 …], …``.

    ``figures`` is what `metrics.evaluate_revisited` gives, in percent.
    """
    maps = [f"{name}: {np.around(of['mAP'], 2)}" for name, of in figures.items()]
    ks = [int(name[3:]) for name in next(iter(figures.values())) if name.startswith("mP@")]
    precisions = [
        f"{name}: {np.around(np.array([of[f'mP@{k}'] for k in ks]), 2)}"
        for name, of in figures.items()
    ]
    return [
        f">> {dataset}: mAP {', '.join(maps)}",
        f">> {dataset}: mP@k{ks} {', '.join(precisions)}",
    ]
