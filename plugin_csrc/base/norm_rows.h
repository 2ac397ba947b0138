// The launch of the kernel norm_rows, which several operators share: see plugin_csrc/kernels/norm_rows.py.
#pragma once

#include <string>

#include "operator.h"

namespace gr {

// The place of the attribute `norm` in the kernels' count: none, layer, rms.
int32_t normOf(Node const& node);

// z = x + bias + skip; y = norm(z) gamma + beta; y = y act(gate); 0 for rows at and beyond `lengths`.
struct NormRows {
  int64_t rows;
  int64_t width;
  int32_t norm;
  float epsilon;
  void* x;
  void* output;
  int32_t xKind{1};  // 1: T, 2: float32
  // Names of the node's inputs; "" where the operator has none.
  std::string bias{};
  std::string skip{};
  std::string gamma{"gamma"};
  std::string beta{"beta"};
  std::string gate{};
  std::string lengths{};
  std::string total{};  // an output
  int32_t activation{0};
  int64_t positions{1};  // rows that each of the lengths counts
};

void launchNormRows(Run const& run, NormRows const& rows);

}  // namespace gr
