"""The console script `onnx-fuse`, and `python -m onnx_fuse` for an interpreter whose scripts folder is not on PATH."""

import os
import signal

for _number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(_number) is not signal.SIG_IGN:  # until the command is supervised, there is nothing to clean up
        signal.signal(_number, lambda number, frame: os._exit(128 + number))


def main() -> None:
    """Runs the command in a process that ends when it is asked to."""
    from onnx_fuse.cli.supervisor import supervised

    supervised(_command)


def _command() -> None:
    from onnx_fuse.cli.app import main

    main()


if __name__ == "__main__":
    main()
