"""Launcher: `python train.py --help`."""

from tinyzero_astar.train import main

if __name__ == "__main__":
    raise SystemExit(main())
