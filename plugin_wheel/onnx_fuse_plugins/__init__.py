"""The compiled libraries of onnx-fuse of the same version, which finds them here: `onnx-fuse plugins show`."""
