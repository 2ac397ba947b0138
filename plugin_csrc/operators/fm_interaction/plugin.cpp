// FMInteraction(E) -> output: 0.5 * ((sum_f e_f)^2 - sum_f e_f^2), [B, D], or summed over D, [B, 1]
#include "base/operator.h"

namespace gr {
namespace {

// As `pick` in fm_interaction.py.
std::string kernelName(Run const& run, int64_t size) {
  std::string const name = std::string("fm_interaction.") + run.type();
  if (size % run.vector() != 0 || !run.aligned()) {
    return name + ".any";
  }
  return name + (size <= 16 ? ".16" : size <= 64 ? ".64" : ".256");
}

class FMInteraction final : public Operator {
 public:
  void read(Node const& node) override { mReduce = node.integer("reduce") != 0; }

  std::vector<nvinfer1::DimsExprs> shapes(Node const&, Shapes const& shapes) const override {
    nvinfer1::DimsExprs const& e = shapes.input("E");
    return {Shapes::of({e.d[0], mReduce ? shapes.constant(1) : e.d[2]})};
  }

  void run(Run const& run) const override {
    Tensor const& e = run.input("E");
    KernelVariant const& kernel = findKernel(kernelName(run, e.size(2)));
    Arguments arguments;
    arguments.pointer(e.data).pointer(run.output("output").data);
    arguments.integer(e.size(0)).integer(e.size(1)).integer(e.size(2)).integer(mReduce ? 1 : 0);
    run.launch(kernel, {ceilDivide(e.size(0), kernel.constant("SAMPLES"))}, arguments);
  }

 private:
  bool mReduce{false};
};

}  // namespace

Entry fmInteraction() {
  return {declared(declarationOf("FMInteraction"), {{"reduce", Kind::kInt}}), makeOperator<FMInteraction>};
}

}  // namespace gr
