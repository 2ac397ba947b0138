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
    nvinfer1::DimsExprs const& x = shapes.rows("x");
    nvinfer1::DimsExprs const& skip = shapes.input("skip", x.nbDims);
    for (int32_t axis = 0; axis < x.nbDims; ++axis) {
      Shapes::requireEqual(x.d[axis], skip.d[axis], "the shapes of x and skip");
    }
    for (char const* vector : {"bias", "gamma", "beta"}) {
      if (node.hasInput(vector)) {
        Shapes::requireEqual(shapes.input(vector, 1).d[0], x.d[x.nbDims - 1], "the last axis of x and of bias, gamma, beta");
      }
    }
    return std::vector<nvinfer1::DimsExprs>(node.outputs().size(), x);
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
  return {{"FusedSkipLayerNorm",
           {{"x", Role::kData},
            {"skip", Role::kData},
            {"bias", Role::kAffine, true},
            {"gamma", Role::kAffine, true},
            {"beta", Role::kAffine, true}},
           {"output", "residual_sum"},
           {{"norm", Kind::kString}, {"epsilon", Kind::kFloat}}},
          makeOperator<FusedSkipLayerNorm>};
}

}  // namespace gr
