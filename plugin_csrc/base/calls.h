// How the kernel library for ONNX Runtime calls the operators of the plugin library, to run nodes on a GPU. C alone: the two are
// built apart, and each brings its own C++ library. Nothing here needs TensorRT or CUDA.
#pragma once

#include <cstdint>

namespace gr::calls {

constexpr int32_t kVersion = 1;

struct Tensor {
  int32_t type;  // as ONNX counts element types
  int32_t rank;
  int64_t const* sizes;
  void* data;  // on the device
};

constexpr int32_t kMostAxes = 8;

struct Output {
  int32_t type;
  int32_t rank;
  int64_t sizes[kMostAxes];
};

enum Kind : int32_t { kInt, kFloat, kString, kInts, kFloats };

// An attribute of a node: `count` values of int64, float or char.
struct Attribute {
  char const* name;
  Kind kind;
  int32_t count;
  void const* data;
};

// What fails tells why by `error`, to the same thread.
struct Table {
  int32_t version;  // kVersion; the rest stands only where it is this one
  char const* (*error)();
  // Whether there is a driver, and kernels for every device.
  bool (*ready)();
  // The attribute at a place of an operator's list, and its kind; false behind the last, or where there is no such operator.
  bool (*attribute)(char const* operation, int32_t place, char const** name, Kind* kind);
  // A node, to be destroyed; null where the operator refuses it. Several threads may run it.
  void* (*create)(char const* operation, Attribute const* attributes, int32_t count);
  void (*destroy)(void* node);
  // Fills in what the outputs are. Returns the bytes of workspace that a run needs; -1 where it fails.
  int64_t (*prepare)(void const* node, Tensor const* inputs, int32_t inputCount, Output* outputs, int32_t outputCount);
  // Launches the node's kernels on a CUstream of the current context.
  bool (*run)(void const* node, Tensor const* inputs, int32_t inputCount, Tensor const* outputs, int32_t outputCount,
              void* workspace, void* stream);
};

// The one function that the plugin library exports for this: `Table const* gr_ml_infra_calls()`.
constexpr char const* kFunction = "gr_ml_infra_calls";

}  // namespace gr::calls
