// HierarchicalSequenceFusion(x, level_embeddings, level_mask?) -> y, level_weights?
#include "node.h"

namespace gr {
namespace {

class HierarchicalSequenceFusion final : public Operator {
 public:
  explicit HierarchicalSequenceFusion(Attributes const& node)
      : mTemperature(node.number("temperature")), mCountsPadding(node.choice("pad", {"truncate", "zero"}) == 1) {
    std::vector<int64_t> const windows = node.integers("windows");
    std::vector<float> const weights = node.numbers("window_weights");
    if (windows.size() != weights.size()) throw Refusal("attributes windows and window_weights have different sizes");
    for (size_t i = 0; i < windows.size(); ++i) {
      if (windows[i] < 1 || windows[i] % 2 == 0) {
        throw Refusal("attribute windows has " + std::to_string(windows[i]) + "; a window must be odd and positive");
      }
      if (weights[i] == 0.F) continue;
      mWindows.push_back(windows[i]);
      mWeights.push_back(weights[i]);
    }
  }

  void run(Run const& run) const override {
    Tensor const& x = run.input("x", 3);
    int64_t const batch = x.sizes[0], positions = x.sizes[1], width = x.sizes[2];
    int64_t const levels = run.input("level_embeddings", 2).sizes[0];
    Fusion a{};
    a.positions = positions;
    a.width = width;
    a.levels = levels;
    a.x = x.operand();
    a.embeddings = run.optional("level_embeddings", {levels, width});
    if (run.has("level_mask")) {
      run.require("level_mask", {{1, batch}, {1, positions}, {1, levels}});
      Sizes const& sizes = run.input("level_mask").sizes;
      a.mask = run.input("level_mask").operand();
      a.maskLevel = sizes[2] == 1 ? 0 : 1;
      a.maskPosition = sizes[1] == 1 ? 0 : sizes[2];
      a.maskBatch = sizes[0] == 1 ? 0 : sizes[1] * sizes[2];
    }
    a.temperature = mTemperature;
    a.windows = mWindows.data();
    a.windowWeights = mWeights.data();
    a.windowCount = static_cast<int64_t>(mWindows.size());
    a.countsPadding = mCountsPadding;
    a.y = run.output("y", x.sizes, x.type);
    a.weights = run.output("level_weights", {batch, positions, levels}, x.type);
    int64_t const rows = batch * positions;
    if (rows == 0 || (width == 0 && (a.weights.data == nullptr || levels == 0))) return;
    int64_t const step = 64;
    run.parallel((rows + step - 1) / step, kernels().fusionScratch(a), [&](int64_t task, float* scratch) {
      kernels().fusion(a, task * step, std::min((task + 1) * step, rows), scratch);
    });
  }

 private:
  float mTemperature;
  bool mCountsPadding;
  std::vector<int64_t> mWindows;
  std::vector<float> mWeights;
};

void infer(Inference const& known) {
  KnownTensor const x = known.input("x"), levels = known.input("level_embeddings").axes({0});
  known.output("y", x.axes({0, 1, 2}));
  KnownTensor weights = x.axes({0, 1});
  weights.append(levels.sizes[0], levels.symbols[0]);
  known.output("level_weights", weights);
}

}  // namespace

Entry hierarchicalSequenceFusion() {
  return {{"HierarchicalSequenceFusion",
           {{"x", Role::kFloats, false}, {"level_embeddings", Role::kFloats, false}, {"level_mask", Role::kMask, true}},
           {"y", "level_weights"}},
          makeOperator<HierarchicalSequenceFusion>,
          infer};
}

}  // namespace gr
