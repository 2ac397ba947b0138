// Nodes on a GPU: by the kernels of the plugin library, for ONNX Runtime's CUDA execution provider.
#pragma once

#include <memory>
#include <string>

#include "../base/calls.h"
#include "node.h"

namespace gr {

// The plugin library, whose file lies in the folder of this one. It is opened once, when operators are first registered.
struct Plugins {
  calls::Table const* table{nullptr};  // null where nothing can run on a GPU
  std::string reason;                  // why not
};
Plugins const& plugins();

// A node that the plugin library runs. Refuses what its operator refuses.
std::unique_ptr<Operator> makeCudaOperator(char const* operation, Attributes const& attributes);

}  // namespace gr
