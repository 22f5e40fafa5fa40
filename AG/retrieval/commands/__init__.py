"""The command lines: flags, and how a script runs. Nothing else knows argparse."""
