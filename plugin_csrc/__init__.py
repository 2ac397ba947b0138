"""The plugin library's sources: Triton kernels and the C++ around them. `onnx_fuse.runtime.plugins.library` builds it."""
