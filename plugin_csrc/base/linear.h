// The launch of the kernel linear, which several operators share: see plugin_csrc/kernels/linear.py.
#pragma once

#include <string>

#include "operator.h"

namespace gr {

// z = x weight + bias + residual; output = norm(z) gamma + beta. Members are names of the node's inputs and outputs; "" for none.
struct Linear {
  void* x;
  int64_t rows;
  int64_t inner;
  int64_t width;
  int32_t norm;
  float epsilon;
  std::string weight{"weight"};
  std::string bias{"bias"};
  std::string residual{};
  std::string gamma{"gamma"};
  std::string beta{"beta"};
  std::string output{"output"};
  std::string total{};
};

// Refuses a weight whose sizes are not known when the engine is built: kernel and workspace go by them.
void checkWeight(Shapes const& shapes, char const* name);

// Bytes of workspace that a launch needs for rows x width numbers of a type, with a weight of inner x width.
size_t linearWorkspace(nvinfer1::DataType type, int64_t rows, int64_t inner, int64_t width, int32_t norm);
void launchLinear(Run const& run, Linear const& linear, void* workspace);

}  // namespace gr
