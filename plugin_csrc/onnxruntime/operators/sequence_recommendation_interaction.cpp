// SequenceRecommendationInteraction(items, user?, time_weights?, mask?) -> scores?, short_term?, long_term?, cooccurrence?
#include "node.h"

namespace gr {
namespace {

class SequenceRecommendationInteraction final : public Operator {
 public:
  explicit SequenceRecommendationInteraction(Attributes const& node)
      : mShortWindow(node.integer("short_window")), mDecay(node.number("decay")), mNormalize(node.integer("normalize") != 0) {}

  void run(Run const& run) const override {
    Tensor const& items = run.input("items", 3);
    int64_t const batch = items.sizes[0], positions = items.sizes[1], size = items.sizes[2];
    if (run.makes("scores")) run.input("user");
    Sequence a{};
    a.positions = positions;
    a.size = size;
    a.items = items.operand();
    a.user = run.optional("user", {batch, size});
    a.timeWeights = run.optional("time_weights", {batch, positions});
    a.mask = run.optional("mask", {batch, positions});
    a.shortWindow = mShortWindow;
    a.decay = mDecay;
    a.normalize = mNormalize;
    a.scores = run.output("scores", {batch, positions}, items.type);
    a.shortTerm = run.output("short_term", {batch, size}, items.type);
    a.longTerm = run.output("long_term", {batch, size}, items.type);
    a.cooccurrence = run.output("cooccurrence", {batch, positions, positions}, items.type);
    if (batch == 0) return;
    Kernels const& with = kernels();
    int64_t const scratch = with.sequenceScratch(a);
    if (a.scores.data != nullptr || a.shortTerm.data != nullptr || a.longTerm.data != nullptr) {
      run.parallel(batch, scratch, [&](int64_t sample, float* room) { with.interests(a, sample, room); });
    }
    if (a.cooccurrence.data != nullptr && positions != 0) {
      int64_t const step = 32 * kGroupRows, tiles = (positions + step - 1) / step;
      run.parallel(batch * tiles, scratch, [&](int64_t task, float* room) {
        int64_t const row = task % tiles * step;
        with.cooccurrence(a, task / tiles, row, std::min(row + step, positions), room);
      });
    }
  }

 private:
  int64_t mShortWindow;
  float mDecay;
  bool mNormalize;
};

void infer(Inference const& known) {
  KnownTensor const items = known.input("items");
  known.output("scores", items.axes({0, 1}));
  known.output("short_term", items.axes({0, 2}));
  known.output("long_term", items.axes({0, 2}));
  known.output("cooccurrence", items.axes({0, 1, 1}));
}

}  // namespace

Entry sequenceRecommendationInteraction() {
  return {{"SequenceRecommendationInteraction",
           {{"items", Role::kFloats, false},
            {"user", Role::kFloats, true},
            {"time_weights", Role::kFloats, true},
            {"mask", Role::kMask, true}},
           {"scores", "short_term", "long_term", "cooccurrence"}},
          makeOperator<SequenceRecommendationInteraction>,
          infer};
}

}  // namespace gr
