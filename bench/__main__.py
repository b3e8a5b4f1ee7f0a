"""`python -m bench`: runs every measurement on every device of this machine. These are steps, how a
step scales, memory, and training runs. Each is a command of its own, too."""

import argparse
import os
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from bench import readme
from bench.devices import DEVICES, Device
from bench.providers import OURS, OURS_TRITON
from bench.readme import RESULTS

# README shows the memory of these.
COMPARED = (OURS, OURS_TRITON, "torch-fused", "torch-foreach", "transformers")
# The commands, with arguments that keep the whole run at six to twelve minutes on two cores.
COMMANDS = {
    "step": "",
    "scaling": "--quick",
    "memory": f"--lists 68M --providers {' '.join(COMPARED)}",
    "train": "--all",
}
INTERRUPTED = 130


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    add("--device", choices=(*DEVICES, "all"), default="all", help="all: every device that is here")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, help="default: bench/out, and bench/out/cuda")
    where.add_argument(
        "--keep", action="store_true", help="write to bench/results/DATE-DEVICE and update README"
    )
    return parser.parse_args()


def folder_of(device: Device, asked: argparse.Namespace) -> Path:
    if asked.keep:
        day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
        facts = device.facts()
        name = facts.get("gpu") or f"{facts['cpu']} {facts['cores']} cores"
        return RESULTS / f"{day}-{'-'.join(str(name).lower().split())}"
    out: Path = asked.out or Path(__file__).parent / "out"
    return out if device.kind == "cpu" else out / device.kind


def main() -> int:
    asked = arguments()
    devices = [device for device in DEVICES.values() if asked.device in (device.kind, "all")]
    for device in devices:
        if asked.device != "all" and device.why_absent():
            print(f"--device {device.kind}: {device.why_absent()}", file=sys.stderr)
            return 1
    status = 0
    for device in devices:
        if device.why_absent():
            continue
        folder = folder_of(device, asked)
        for name in asked.only:
            command = [sys.executable, "-m", f"bench.{name}", *COMMANDS[name].split()]
            command += ["--device", device.kind, "--out", os.path.relpath(folder)]
            print(f"\n== {name} on {device.kind}", file=sys.stderr, flush=True)
            begin = time.perf_counter()
            try:
                code = subprocess.run(command).returncode
            except KeyboardInterrupt:  # the command got it too, and has saved what was finished
                code = INTERRUPTED
            print(f"== {name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
            if code == INTERRUPTED:
                return INTERRUPTED
            status = code or status
    return readme.main([]) or status if asked.keep else status


if __name__ == "__main__":
    sys.exit(main())
