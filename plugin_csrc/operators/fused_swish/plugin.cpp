// FusedSwish(x) = x * sigmoid(beta * x)
#include "base/operator.h"

namespace gr {
namespace {

class FusedSwish final : public Operator {
 public:
  void read(Node const& node) override { mBeta = node.number("beta"); }

  std::vector<nvinfer1::DimsExprs> shapes(Node const&, Shapes const& shapes) const override { return {shapes.input("x")}; }

  void run(Run const& run) const override {
    Tensor const& x = run.input("x");
    KernelVariant const& kernel = findKernel(std::string("fused_swish.") + run.type());
    Arguments arguments;
    arguments.pointer(x.data).pointer(run.output("output").data).integer(x.elements()).float32(mBeta);
    run.launch(kernel, {ceilDivide(x.elements(), kernel.constant("BLOCK"))}, arguments);
  }

 private:
  float mBeta{1.0F};
};

}  // namespace

Entry fusedSwish() { return {declared(declarationOf("FusedSwish"), {{"beta", Kind::kFloat}}), makeOperator<FusedSwish>}; }

}  // namespace gr
