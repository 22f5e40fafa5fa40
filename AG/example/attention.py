"""Train DELF's attention on a fine-tuned network, by the loss of the network's fine-tuning.

The map is weighted by the attention before it is pooled; the fine-tuned weights stay as they are
unless --train-all. Takes the flags of example.finetuning, and --param-directory: its DIR.

Examples:
    python3 -m example.attention ./attention_models --backbone resnet18 --param-directory ./models
    python3 -m example.attention ./attention_models --layer layer3 --param-directory ./models
"""

from retrieval.commands import delf_flags, script

if __name__ == "__main__":  # -h need not wait for what is imported below
    script.answer(delf_flags.read_attention, __doc__)

from collections.abc import Sequence

from example import finetuning


def main(argv: Sequence[str] | None = None) -> None:
    """Train the attention."""
    finetuning.main(argv, __doc__, delf_flags.read_attention)


if __name__ == "__main__":
    script.run(main)
