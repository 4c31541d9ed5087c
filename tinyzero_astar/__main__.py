"""`python -m tinyzero_astar solve "37*84"`, or `doctor`; without a sub-command it is `python train.py`."""

import sys

from tinyzero_astar.doctor import doctor_main
from tinyzero_astar.solve import solve_main
from tinyzero_astar.train import main, while_read

if __name__ == "__main__":
    if sys.argv[1:2] == ["solve"]:
        raise SystemExit(while_read(lambda: solve_main(sys.argv[2:])))
    if sys.argv[1:2] == ["doctor"]:
        raise SystemExit(while_read(lambda: doctor_main(sys.argv[2:])))
    raise SystemExit(main())
