"""Check and measure the project on one GPU within minutes. `python jobs/device.py --out device.json`

It needs torch, numpy, jaxtyping, and pillow, but neither Ray nor a decoder: a bare machine with a GPU will do.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import device


def main() -> int:
    parser = argparse.ArgumentParser(prog="python jobs/device.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="Compute device: cuda, cuda:1, or cpu.")
    parser.add_argument("--small", action="store_true", help="Use small networks and clips, as on a CPU.")
    parser.add_argument("--out", default="device.json", help="File for the results.")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=list(device.LIMITS_SECONDS),
        default=list(device.LIMITS_SECONDS),
        help="Sections to run.",
    )
    flags = parser.parse_args()
    failed = 0
    for check in device.run(flags.sections, flags.device, Path(flags.out), small=flags.small):
        failed += check.passed is False
        print(device.as_line(check), flush=True)
    print(f"{failed} failed checks; results in {flags.out}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
