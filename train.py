"""Launcher: `python train.py --help`."""

from tinyzero_astar.terminal import end_process, run_command


def _train() -> int:
    from tinyzero_astar.cli.train import main  # here, so that a missing package is one sentence

    return main()


if __name__ == "__main__":
    end_process(run_command(_train))
