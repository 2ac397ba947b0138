// What FusedSkipLayerNorm and FusedEmbedLayerNorm share: a sum of rows, and its norm.
#pragma once

#include "node.h"

namespace gr {

class NormOfSum : public Operator {
 protected:
  explicit NormOfSum(Attributes const& node)
      : mNorm(static_cast<Norm>(node.choice("norm", {"none", "layer", "rms"}))), mEpsilon(node.number("epsilon")) {}

  // Rows of so many `positions` to the batch, of the terms' sum, to `output` and the output named `sum`.
  void runRows(Run const& run, std::vector<Term> const& terms, char const* sum, Sizes const& sizes, int64_t positions,
               int32_t type) const {
    NormSum a{};
    a.width = sizes.back();
    a.positions = positions;
    a.terms = terms.data();
    a.termCount = static_cast<int64_t>(terms.size());
    a.norm = mNorm;
    a.epsilon = mEpsilon;
    a.gamma = run.optional("gamma", {a.width});
    a.beta = run.optional("beta", {a.width});
    a.output = run.output("output", sizes, type);
    a.sum = run.output(sum, sizes, type);
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < sizes.size(); ++i) rows *= sizes[i];
    if (rows * a.width == 0) return;
    int64_t const step = std::max<int64_t>(1, 16384 / a.width);
    run.parallel((rows + step - 1) / step, kernels().normSumScratch(a), [&](int64_t task, float* scratch) {
      kernels().normSum(a, task * step, std::min((task + 1) * step, rows), scratch);
    });
  }

 private:
  Norm mNorm;
  float mEpsilon;
};

}  // namespace gr
