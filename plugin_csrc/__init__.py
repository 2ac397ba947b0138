"""The plugin library's sources: Triton kernels and the C++ around them. `onnx_fuse.runtime.plugins.plugin_library` builds it."""
