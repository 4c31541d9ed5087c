"""`python -m tinyzero_astar` is `tinyzero`. With options of train.py alone, or none, it is `python train.py`."""

import sys

from tinyzero_astar.terminal import end_process, run_command


def _run() -> int:  # imports stand here, so that a missing package is one sentence
    if sys.argv[1:2] and (not sys.argv[1].startswith("-") or sys.argv[1] in ("-h", "--help")):
        from tinyzero_astar.cli.commands import main

        return main(sys.argv[1:])
    from tinyzero_astar.cli.train import main as train

    return train()


if __name__ == "__main__":
    end_process(run_command(_run))
