// What the attention operators share: which heads there are kernels for, and how their variants are called.
#pragma once

#include <string>

#include "operator.h"

namespace gr {

// The end of a kernel's name for heads of these sizes, as `held_size` in plugin_csrc/operators/hstu_hierarchical_attention/kernel.py:
// "d64", or "d64.any" for sizes that are no multiples of 16, for a bias or mask that broadcasts its last axis, and for tensors that
// begin anywhere: whatever is not `dense`.
struct HeldSize {
  int64_t size;
  bool aligned;

  std::string suffix() const { return "d" + std::to_string(size) + (aligned ? "" : ".any"); }
};

HeldSize heldSize(int64_t size, int64_t valueSize, bool dense);

// Refuses a last axis that is not known when the engine is built, or is not `heads` heads that a kernel takes.
void checkHeads(Shapes::Expression width, int64_t heads, char const* name);

}  // namespace gr
