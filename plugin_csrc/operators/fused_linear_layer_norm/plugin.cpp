// FusedLinearLayerNorm(x, weight, bias?, gamma?, beta?) -> output: norm(x weight + bias) over the last axis
#include "base/linear.h"
#include "base/norm_rows.h"

namespace gr {
namespace {

class FusedLinearLayerNorm final : public Operator {
 public:
  void read(Node const& node) override {
    mNorm = normOf(node);
    mEpsilon = node.number("epsilon");
  }

  std::vector<nvinfer1::DimsExprs> shapes(Node const& node, Shapes const& shapes) const override {
    nvinfer1::DimsExprs output = shapes.rows("x");
    nvinfer1::DimsExprs const& weight = shapes.input("weight", 2);
    Shapes::requireEqual(output.d[output.nbDims - 1], weight.d[0], "the last axis of x and the first of weight");
    for (char const* vector : {"bias", "gamma", "beta"}) {
      if (node.hasInput(vector)) {
        Shapes::requireEqual(weight.d[1], shapes.input(vector, 1).d[0], "the last axis of weight and of bias, gamma, beta");
      }
    }
    output.d[output.nbDims - 1] = weight.d[1];
    return {output};
  }

  size_t workspace(std::vector<Tensor> const& inputs) const override {
    return linearWorkspace(inputs[0].type, inputs[0].rows(), inputs[1].size(1), mNorm);
  }

  void run(Run const& run) const override {
    Tensor const& x = run.input("x");
    Tensor const& weight = run.input("weight");
    launchLinear(run, {x.data, x.rows(), weight.size(0), weight.size(1), mNorm, mEpsilon}, run.workspace());
  }

 private:
  int32_t mNorm{0};
  float mEpsilon{0.0F};
};

}  // namespace

Entry fusedLinearLayerNorm() {
  return {{"FusedLinearLayerNorm",
           {{"x", Role::kData},
            {"weight", Role::kData},
            {"bias", Role::kAffine, true},
            {"gamma", Role::kAffine, true},
            {"beta", Role::kAffine, true}},
           {"output"},
           {{"norm", Kind::kString}, {"epsilon", Kind::kFloat}}},
          makeOperator<FusedLinearLayerNorm>};
}

}  // namespace gr
