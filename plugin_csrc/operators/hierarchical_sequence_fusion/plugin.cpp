// HierarchicalSequenceFusion(x, level_embeddings, level_mask?) -> (y, level_weights?): rows mixed with weighted levels
#include "base/operator.h"

namespace gr {
namespace {

constexpr size_t kSlots = 4;
constexpr int64_t kMostLevels = 128;

// As `pick` in kernel.py, and what runs where that is not compiled.
std::vector<std::string> kernelNames(Run const& run, int64_t width, int64_t levels) {
  bool const odd = width % 16 != 0 || !run.aligned() || !run.isDense({"level_mask"}, levels);
  std::string const name = std::string("hierarchical_sequence_fusion.") + run.type();
  std::vector<std::string> names{name + ".l128.any"};
  if (!odd) {
    names.insert(names.begin(), name + (levels <= 16 ? ".l16" : ".l128"));
  }
  return names;
}

class HierarchicalSequenceFusion final : public Operator {
 public:
  void read(Node const& node) override {
    mTemperature = node.number("temperature");
    mWindows = node.integers("windows");
    mFactors = node.numbers("window_weights");
    mTruncates = node.choice("pad", {"zero", "truncate"});
    if (mWindows.size() > kSlots || mFactors.size() != mWindows.size()) {
      refuse("the kernel takes up to ", kSlots, " windows with a weight each, not ", mWindows.size(), " windows and ",
             mFactors.size(), " weights");
    }
    for (int64_t const window : mWindows) {
      if (window < 1 || window % 2 == 0) {
        refuse("a window has to be odd, not ", window);
      }
    }
  }

  std::vector<nvinfer1::DimsExprs> shapes(Node const& node, Shapes const& shapes) const override {
    nvinfer1::DimsExprs const& x = shapes.input("x");
    nvinfer1::DimsExprs const& levels = shapes.input("level_embeddings");
    if (Shapes::known(levels.d[0]) < 0 || Shapes::known(levels.d[0]) > kMostLevels) {
      refuse("the kernel takes up to ", kMostLevels, " levels, a number known when the engine is built");
    }
    nvinfer1::DimsExprs const weights = Shapes::of({x.d[0], x.d[1], levels.d[0]});
    std::vector<nvinfer1::DimsExprs> made;
    for (std::string const& output : node.outputs()) {
      made.push_back(output == "y" ? x : weights);
    }
    return made;
  }

  void run(Run const& run) const override {
    Tensor const& x = run.input("x");
    Tensor const& embeddings = run.input("level_embeddings");
    int64_t const width = x.size(2);
    int64_t const levels = embeddings.size(0);
    KernelVariant const& kernel = findKernel(kernelNames(run, width, levels));
    Arguments arguments;
    arguments.pointer(x.data).pointer(embeddings.data).pointer(run.dataOr("level_mask", x.data));
    arguments.pointer(run.output("y").data).pointer(run.dataOr("level_weights", x.data));
    arguments.integer(x.rows()).integer(x.size(1)).integer(width).integer(levels);
    for (int32_t axis = 0; axis < 3; ++axis) {
      arguments.integer(run.strideOf("level_mask", axis));
    }
    arguments.float32(mTemperature);
    arguments.integer(run.kind("level_mask")).integer(run.makes("level_weights") ? 1 : 0).integer(mTruncates);
    for (size_t slot = 0; slot < kSlots; ++slot) {
      arguments.integer(slot < mWindows.size() ? mWindows[slot] / 2 : -1);
    }
    for (size_t slot = 0; slot < kSlots; ++slot) {
      arguments.float32(slot < mFactors.size() ? mFactors[slot] : 0.0F);
    }
    run.launch(kernel, {ceilDivide(x.rows(), kernel.constant("ROWS"))}, arguments);
  }

 private:
  float mTemperature{1.0F};
  std::vector<int64_t> mWindows;
  std::vector<float> mFactors;
  int32_t mTruncates{1};
};

}  // namespace

Entry hierarchicalSequenceFusion() {
  return {declared(declarationOf("HierarchicalSequenceFusion"), {{"temperature", Kind::kFloat},
                                                                 {"windows", Kind::kInts, true},
                                                                 {"window_weights", Kind::kFloats, true},
                                                                 {"pad", Kind::kString}}),
          makeOperator<HierarchicalSequenceFusion>};
}

}  // namespace gr
