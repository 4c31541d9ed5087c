"""`python -m tinyzero_astar solve "37*84"`, or `doctor`; without a sub-command it is `python train.py`."""

import sys

from tinyzero_astar.terminal import end_process, run_command


def _run() -> int:  # imports stand here, so that a missing package is one sentence
    if sys.argv[1:2] == ["solve"]:
        from tinyzero_astar.cli.solve import solve_main

        return solve_main(sys.argv[2:])
    if sys.argv[1:2] == ["doctor"]:
        from tinyzero_astar.cli.doctor import doctor_main

        return doctor_main(sys.argv[2:])
    from tinyzero_astar.cli.train import main

    return main()


if __name__ == "__main__":
    end_process(run_command(_run))
