"""Train DELF's attention on a fine-tuned network, by the loss of the network's fine-tuning.

The map is weighted by the attention before it is pooled; the fine-tuned weights stay as they are
unless --train-all. Takes the flags of example.finetuning, and --param-directory: its DIR.
"""

from collections.abc import Sequence

from example import options
from example.finetuning import tune
from retrieval.commands.script import run


def main(argv: Sequence[str] | None = None) -> None:
    """Train the attention."""
    tune(options.read_tuning(__doc__, argv, attention=True))


if __name__ == "__main__":
    run(main)
