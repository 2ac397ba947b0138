// The CUDA driver, opened when the first kernel is launched: a machine without one can still load the library.
#pragma once

#include <cuda.h>

namespace gr {

// The functions that launching needs. A name is what cuda.h makes of it: the version that these headers belong to.
struct Driver {
  decltype(&::cuGetErrorString) getErrorString;
  decltype(&::cuInit) init;
  decltype(&::cuDeviceGetCount) deviceGetCount;
  decltype(&::cuDeviceGet) deviceGet;
  decltype(&::cuCtxGetCurrent) ctxGetCurrent;
  decltype(&::cuCtxGetDevice) ctxGetDevice;
  decltype(&::cuDeviceGetAttribute) deviceGetAttribute;
  decltype(&::cuModuleLoadDataEx) moduleLoadDataEx;
  decltype(&::cuModuleGetFunction) moduleGetFunction;
  decltype(&::cuFuncSetAttribute) funcSetAttribute;
  decltype(&::cuLaunchKernel) launchKernel;
  // Since CUDA 12, null before; its type is written out for the headers of CUDA 11.
  CUresult (*ctxGetId)(CUcontext, unsigned long long*);
  // Likewise: a map, its element type, rank, address, sizes, strides of all axes but the innermost, box, steps, and four options.
  CUresult (*tensorMapEncodeTiled)(void*, int, cuuint32_t, void*, cuuint64_t const*, cuuint64_t const*, cuuint32_t const*,
                                   cuuint32_t const*, int, int, int, int);
  // What tells contexts apart without cuCtxGetId.
  decltype(&::cuMemAlloc) memAlloc;
  decltype(&::cuPointerGetAttribute) pointerGetAttribute;

  // Refuses with what the driver says if `result` is an error; `what` is the call.
  void check(CUresult result, char const* what) const;
};

// Refuses where there is no driver.
Driver const& driver();

}  // namespace gr
