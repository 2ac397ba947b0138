// FusedSkipLayerNorm(x, skip, bias?, gamma?, beta?) -> (output, residual_sum?): norm(x + bias + skip) over the last axis
#include "base/norm_rows.h"

namespace gr {
namespace {

class FusedSkipLayerNorm final : public Operator {
 public:
  void read(Node const& node) override {
    mNorm = normOf(node);
    mEpsilon = node.number("epsilon");
  }

  std::vector<nvinfer1::DimsExprs> shapes(Node const& node, Shapes const& shapes) const override {
    return std::vector<nvinfer1::DimsExprs>(node.outputs().size(), shapes.input("x"));
  }

  void run(Run const& run) const override {
    Tensor const& x = run.input("x");
    NormRows rows{x.rows(), x.size(-1), mNorm, mEpsilon, x.data, run.output("output").data};
    rows.bias = "bias";
    rows.skip = "skip";
    rows.total = "residual_sum";
    launchNormRows(run, rows);
  }

 private:
  int32_t mNorm{0};
  float mEpsilon{0.0F};
};

}  // namespace

Entry fusedSkipLayerNorm() {
  return {declared(declarationOf("FusedSkipLayerNorm"), {{"norm", Kind::kString}, {"epsilon", Kind::kFloat}}),
          makeOperator<FusedSkipLayerNorm>};
}

}  // namespace gr
