// InteractionTritonFast(E, or dense and sparse, or feature_1, feature_2, ...) -> output
#include "node.h"

namespace gr {
namespace {

int64_t pairsOf(int64_t features, bool self) { return features * (features + (self ? 1 : -1)) / 2; }

class InteractionTritonFast final : public Operator {
 public:
  explicit InteractionTritonFast(Attributes const& node)
      : mLower(node.choice("triangle", {"lower", "upper"}) == 0),
        mSelf(node.integer("self_interaction") != 0),
        mDense(node.choice("concat_dense", {"none", "first", "last"})) {}

  void run(Run const& run) const override {
    std::vector<Operand> features;
    std::vector<int64_t> strides;
    Tensor const& like = run.input(run.names().at(0));
    int64_t const batch = like.sizes.empty() ? 0 : like.sizes[0], size = like.sizes.empty() ? 0 : like.sizes.back();
    for (std::string const& name : run.names()) {
      bool const many = name == "E" || name == "sparse";
      Tensor const& found = run.input(name, many ? 3 : 2);
      int64_t const count = many ? found.sizes[1] : 1;
      run.require(name, many ? Allowed{{batch}, {count}, {size}} : Allowed{{batch}, {size}});
      Operand const start = found.operand();
      int64_t const bytes = start.element == Element::kFloat32 ? 4 : 2;
      for (int64_t i = 0; i < count; ++i) {
        features.push_back({static_cast<char const*>(start.data) + i * size * bytes, start.element});
        strides.push_back(count * size);
      }
    }
    Interaction a{};
    a.features = static_cast<int64_t>(features.size());
    if (a.features == 0 && mDense != 0)
      throw Refusal("input E is " + described(like) + "; there is no first feature for the output");
    a.size = size;
    a.feature = features.data();
    a.stride = strides.data();
    int64_t const pairs = pairsOf(a.features, mSelf);
    a.width = pairs + (mDense == 0 ? 0 : size);
    a.first = mDense == 1 ? size : 0;
    a.denseAt = mDense == 0 ? -1 : mDense == 1 ? 0 : pairs;
    a.lower = mLower;
    a.self = mSelf;
    a.y = run.output("output", {batch, a.width}, like.type);
    if (a.width == 0) return;
    int64_t const step = 32;
    Kernels const& with = kernels();
    run.parallel((batch + step - 1) / step, with.interactionScratch(a), [&](int64_t task, float* scratch) {
      with.interaction(a, task * step, std::min((task + 1) * step, batch), scratch);
    });
  }

 private:
  bool mLower;
  bool mSelf;
  int32_t mDense;  // 0 none, 1 first, 2 last
};

void infer(Inference const& known) {
  KnownTensor output{known.input(known.names().at(0)).axes({0})};
  int64_t features = 0, size = -1;
  for (std::string const& name : known.names()) {
    KnownTensor const found = known.input(name);
    bool const many = name == "E" || name == "sparse";
    int64_t const count = many ? found.axes({1}).sizes[0] : 1;
    features = count < 0 || features < 0 ? -1 : features + count;
    size = found.axes({many ? 2U : 1U}).sizes[0];
  }
  bool const dense = known.text("concat_dense") != "none";
  bool const unknown = features < 0 || (dense && size < 0);
  known.output("output",
               output.append(unknown ? -1 : pairsOf(features, known.integer("self_interaction") != 0) + (dense ? size : 0)));
}

}  // namespace

Entry interactionTritonFast() {
  return {{"InteractionTritonFast",
           {{"E", Role::kFloats, true},
            {"dense", Role::kFloats, true},
            {"sparse", Role::kFloats, true},
            {"feature_*", Role::kFloats, true}},
           {"output"}},
          makeOperator<InteractionTritonFast>,
          infer};
}

}  // namespace gr
