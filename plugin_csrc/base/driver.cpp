#include "driver.h"

#include <dlfcn.h>

#include "refusal.h"

namespace gr {
namespace {

template <typename Function>
void find(void* library, char const* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) {
    refuse("the CUDA driver has no ", name, ": it is older than CUDA 11");
  }
}

Driver open() {
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    refuse("no CUDA driver: ", dlerror());
  }
  Driver driver{};
  find(library, "cuGetErrorString", driver.getErrorString);
  find(library, "cuInit", driver.init);
  find(library, "cuDeviceGetCount", driver.deviceGetCount);
  find(library, "cuDeviceGet", driver.deviceGet);
  find(library, "cuCtxGetCurrent", driver.ctxGetCurrent);
  find(library, "cuCtxGetDevice", driver.ctxGetDevice);
  find(library, "cuDeviceGetAttribute", driver.deviceGetAttribute);
  find(library, "cuModuleLoadDataEx", driver.moduleLoadDataEx);
  find(library, "cuModuleGetFunction", driver.moduleGetFunction);
  find(library, "cuFuncSetAttribute", driver.funcSetAttribute);
  find(library, "cuLaunchKernel", driver.launchKernel);
  find(library, "cuMemAlloc_v2", driver.memAlloc);
  find(library, "cuPointerGetAttribute", driver.pointerGetAttribute);
  driver.ctxGetId = reinterpret_cast<decltype(driver.ctxGetId)>(dlsym(library, "cuCtxGetId"));
  driver.tensorMapEncodeTiled =
      reinterpret_cast<decltype(driver.tensorMapEncodeTiled)>(dlsym(library, "cuTensorMapEncodeTiled"));
  return driver;
}

}  // namespace

Driver const& driver() {
  static Driver const opened = open();  // when it throws, the next call tries again
  return opened;
}

void Driver::check(CUresult result, char const* what) const {
  if (result == CUDA_SUCCESS) {
    return;
  }
  char const* text = nullptr;
  getErrorString(result, &text);
  refuse(what, " failed with ", static_cast<int>(result), ": ", text == nullptr ? "unknown error" : text);
}

}  // namespace gr
