// FMInteraction(E) -> output
#include "node.h"

namespace gr {
namespace {

class FMInteraction final : public Operator {
 public:
  explicit FMInteraction(Attributes const& node) : mReduce(node.integer("reduce") != 0) {}

  void run(Run const& run) const override {
    Tensor const& e = run.input("E", 3);
    int64_t const batch = e.sizes[0], width = mReduce ? 1 : e.sizes[2];
    Fm const a{e.sizes[1], e.sizes[2], e.operand(), mReduce, run.output("output", {batch, width}, e.type)};
    if (batch * width == 0) return;
    int64_t const step = 32;
    run.parallel((batch + step - 1) / step, kernels().fmScratch(a), [&](int64_t task, float* scratch) {
      kernels().fm(a, task * step, std::min((task + 1) * step, batch), scratch);
    });
  }

 private:
  bool mReduce;
};

void infer(Inference const& known) {
  KnownTensor const e = known.input("E");
  known.output("output", known.integer("reduce") != 0 ? e.axes({0}).append(1) : e.axes({0, 2}));
}

}  // namespace

Entry fmInteraction() {
  return {{"FMInteraction", {{"E", Role::kFloats, false}}, {"output"}}, makeOperator<FMInteraction>, infer};
}

}  // namespace gr
