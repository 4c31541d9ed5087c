"""`python -m tinyzero_astar` is `python train.py`."""

from tinyzero_astar.train import main

if __name__ == "__main__":
    raise SystemExit(main())
