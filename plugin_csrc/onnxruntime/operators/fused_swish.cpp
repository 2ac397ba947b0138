// FusedSwish(x) -> output
#include "node.h"

namespace gr {
namespace {

class FusedSwish final : public Operator {
 public:
  explicit FusedSwish(Attributes const& node) : mBeta(node.number("beta")) {}

  void run(Run const& run) const override {
    Tensor const& x = run.input("x");
    Swish const a{x.operand(), mBeta, run.output("output", x.sizes, x.type)};
    int64_t const step = 16384, count = x.elements();
    run.parallel((count + step - 1) / step, 0,
                 [&](int64_t task, float*) { kernels().swish(a, task * step, std::min((task + 1) * step, count)); });
  }

 private:
  float mBeta;
};

void infer(Inference const& known) { known.output("output", known.input("x")); }

}  // namespace

Entry fusedSwish() { return {{"FusedSwish", {{"x", Role::kFloats, false}}, {"output"}}, makeOperator<FusedSwish>, infer}; }

}  // namespace gr
