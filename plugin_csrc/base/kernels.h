// The kernels that were compiled ahead of time, and how they are launched.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

namespace gr {

// A constant that a kernel was compiled with, such as its tile size.
struct KernelConstant {
  char const* name;
  int64_t value;
};

// One variant compiled for one architecture.
struct KernelImage {
  char const* symbol;
  int32_t architecture;  // 90 for sm_90
  bool exact;            // runs on this architecture only
  bool ptx;
  int32_t threads;
  int32_t sharedBytes;
  uint32_t offset;  // of the image packed with zlib, in the library's blob
  uint32_t packedSize;
  uint32_t size;
};

struct KernelVariant {
  char const* name;
  // One letter for each argument: p(ointer), i(nt32), l(ong, int64), f(loat32), t(ensor map), with its sizes and strides behind it.
  char const* signature;
  KernelConstant const* constants;
  int32_t constantCount;
  KernelImage const* images;
  int32_t imageCount;
  int32_t alignment;  // bytes that every pointer has to be a multiple of; 1 where that of its element type is enough

  // Refuses where the kernel has no such constant.
  int64_t constant(std::string_view wanted) const;
  // Whether it takes tensor maps.
  bool isMapped() const { return std::string_view(signature).find('t') != std::string_view::npos; }
};

// The first of these kernels that has machine code for the current device, else the first of which a PTX runs here: not every
// architecture has every kernel, and what is special may not have been compiled. Refuses where none of them was.
KernelVariant const& findKernel(std::vector<std::string> const& names);
KernelVariant const& findKernel(std::string const& name);
// The kernel of this name; null where it was not compiled.
KernelVariant const* lookUp(std::string const& name);

struct Grid {
  int64_t x{1};
  int64_t y{1};
  int64_t z{1};

  bool isEmpty() const { return x <= 0 || y <= 0 || z <= 0; }
};

// A matrix that a kernel reads in blocks through the tensor memory accelerator, such as TMA kernels of sm_90 do. It lies in the
// kernel's arguments, not in the device's memory, and to make one is arithmetic on the host: each launch makes its own.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

// Arguments of a kernel in the order of its signature; they live here until it is launched.
class Arguments {
 public:
  Arguments& pointer(void const* value);
  Arguments& integer(int64_t value);  // as wide as the kernel takes it
  Arguments& float32(float value);
  // A dense matrix of 16-bit elements, which a kernel reads in blocks of `blockRows` whole rows' parts of 64 columns.
  Arguments& matrix(void const* data, int64_t rows, int64_t columns, int64_t blockRows);

 private:
  friend void checkLaunch(KernelVariant const&, Grid, Arguments const&);
  friend void launchKernel(KernelVariant const&, Grid, Arguments&, CUstream);
  friend class Run;
  union Value {
    void const* pointer;
    int64_t integer;
    float float32;
    TensorMap map;
  };
  Value& add(char kind);
  // Refuses where they are not what the kernel takes.
  void check(KernelVariant const& variant) const;
  // Makes the tensor maps of what `matrix` was told. Refuses where the driver does.
  void makeMaps();

  std::deque<Value> mValues;  // a deque keeps its elements where they are
  std::string mKinds;         // p, n, f or t for each
  struct Matrix {
    size_t index;  // of the map that is made of it
    void const* data;
    int64_t rows;
    int64_t columns;
    int64_t blockRows;
  };
  std::vector<Matrix> mMatrices;
};

// What all kernels of this library were compiled for: 90 for machine code of sm_90, -80 for PTX of sm_80.
std::vector<int32_t> kernelArchitectures();

// Refuses where there is no driver, no device, or a device that no kernel of this library was compiled for.
void checkDevices();

// Tells the kernels of this library, and the version of onnx-fuse that wrote them, from all others.
char const* kernelDigest();

// Multiprocessors of the current device.
int64_t multiprocessors();

// Loads a kernel for the current device, so that a launch after it allocates nothing.
void prepareKernel(KernelVariant const& variant);
// Refuses arguments and grids that a kernel does not take.
void checkLaunch(KernelVariant const& variant, Grid grid, Arguments const& arguments);
void launchKernel(KernelVariant const& variant, Grid grid, Arguments& arguments, CUstream stream);

}  // namespace gr
