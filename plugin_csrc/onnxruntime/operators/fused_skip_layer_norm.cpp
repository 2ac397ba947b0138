// FusedSkipLayerNorm(x, skip, bias?, gamma?, beta?) -> output, residual_sum?
#include "norm_sum.h"

namespace gr {
namespace {

class FusedSkipLayerNorm final : public NormOfSum {
 public:
  explicit FusedSkipLayerNorm(Attributes const& node) : NormOfSum(node) {}

  void run(Run const& run) const override {
    Tensor const& x = run.input("x");
    if (x.sizes.empty()) throw Refusal("input x is a scalar; it must have a last axis");
    int64_t const width = x.sizes.back();
    std::vector<Term> terms{{x.operand(), width, nullptr, false, 0, 0, 0}};
    if (run.has("bias")) terms.push_back({run.optional("bias", {width}), 0, nullptr, false, 0, 0, 0});
    run.input("skip");
    terms.push_back({run.optional("skip", x.sizes), width, nullptr, false, 0, 0, 0});
    runRows(run, terms, "residual_sum", x.sizes, 1, x.type);
  }
};

void infer(Inference const& known) {
  for (char const* name : {"output", "residual_sum"}) known.output(name, known.input("x"));
}

}  // namespace

Entry fusedSkipLayerNorm() {
  return {{"FusedSkipLayerNorm",
           {{"x", Role::kFloats, false},
            {"skip", Role::kFloats, false},
            {"bias", Role::kFloats, true},
            {"gamma", Role::kFloats, true},
            {"beta", Role::kFloats, true}},
           {"output", "residual_sum"}},
          makeOperator<FusedSkipLayerNorm>,
          infer};
}

}  // namespace gr
