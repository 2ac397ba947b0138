"""`python -m onnx_fuse`: the same command as `onnx-fuse`, for an interpreter whose scripts folder is not on PATH."""

from onnx_fuse.cli.app import main

if __name__ == "__main__":
    main()
