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

  std::vector<nvinfer1::DimsExprs> shapes(Node const&, Shapes const& shapes) const override {
    checkWeight(shapes, "weight");
    nvinfer1::DimsExprs output = shapes.input("x");
    output.d[output.nbDims - 1] = shapes.input("weight").d[1];
    return {output};
  }

  size_t workspace(std::vector<Tensor> const& inputs) const override {
    return linearWorkspace(inputs[0].type, inputs[0].rows(), inputs[1].size(0), inputs[1].size(1), mNorm);
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
  return {declared(declarationOf("FusedLinearLayerNorm"), {{"norm", Kind::kString}, {"epsilon", Kind::kFloat}}),
          makeOperator<FusedLinearLayerNorm>};
}

}  // namespace gr
