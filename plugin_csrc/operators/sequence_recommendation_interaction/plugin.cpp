// SequenceRecommendationInteraction(items, user?, time_weights?, mask?) -> any of (scores, short_term, long_term, cooccurrence)
#include "base/operator.h"

namespace gr {
namespace {

class SequenceRecommendationInteraction final : public Operator {
 public:
  void read(Node const& node) override {
    mShortWindow = node.integer("short_window");
    mDecay = node.number("decay");
    mNormalize = node.integer("normalize") != 0;
    if (node.output("scores") >= 0 && !node.hasInput("user")) {
      refuse("scores need the input user");
    }
  }

  std::vector<nvinfer1::DimsExprs> shapes(Node const& node, Shapes const& shapes) const override {
    nvinfer1::DimsExprs const& items = shapes.input("items");
    std::vector<nvinfer1::DimsExprs> made;
    for (std::string const& output : node.outputs()) {
      if (output == "scores") {
        made.push_back(Shapes::of({items.d[0], items.d[1]}));
      } else if (output == "cooccurrence") {
        made.push_back(Shapes::of({items.d[0], items.d[1], items.d[1]}));
      } else {
        made.push_back(Shapes::of({items.d[0], items.d[2]}));
      }
    }
    return made;
  }

  void run(Run const& run) const override {
    Tensor const& items = run.input("items");
    int64_t const batch = items.size(0);
    int64_t const length = items.size(1);
    int64_t const size = items.size(2);
    std::string const name = "sequence_recommendation_interaction.";
    if (run.makes("scores") || run.makes("short_term") || run.makes("long_term")) {
      KernelVariant const& kernel = findKernel(name + "interests." + run.type());
      Arguments arguments;
      arguments.pointer(items.data);
      for (char const* tensor : {"user", "time_weights", "mask", "scores", "short_term", "long_term"}) {
        arguments.pointer(run.dataOr(tensor, items.data));
      }
      arguments.integer(length).integer(size).integer(mShortWindow).integer(mNormalize ? 1 : 0);
      arguments.integer(run.kind("time_weights")).integer(run.kind("mask"));
      for (char const* tensor : {"scores", "short_term", "long_term"}) {
        arguments.integer(run.makes(tensor) ? 1 : 0);
      }
      run.launch(kernel, {batch * ceilDivide(size, kernel.constant("BLOCK"))}, arguments);
    }
    if (run.makes("cooccurrence")) {
      bool const odd = size % run.vector() != 0 || !run.aligned();
      KernelVariant const& kernel = findKernel(name + "cooccurrence." + run.type() + (odd ? ".any" : ""));
      Arguments arguments;
      arguments.pointer(items.data).pointer(run.dataOr("mask", items.data)).pointer(run.output("cooccurrence").data);
      arguments.integer(length).integer(size).float32(mDecay).integer(run.kind("mask"));
      int64_t const tiles = ceilDivide(length, kernel.constant("ROWS"));
      run.launch(kernel, {batch * tiles * tiles}, arguments);
    }
  }

 private:
  int64_t mShortWindow{0};
  float mDecay{0.0F};
  bool mNormalize{false};
};

}  // namespace

Entry sequenceRecommendationInteraction() {
  return {declared(declarationOf("SequenceRecommendationInteraction"),
                   {{"short_window", Kind::kInt}, {"decay", Kind::kFloat}, {"normalize", Kind::kInt}}),
          makeOperator<SequenceRecommendationInteraction>};
}

}  // namespace gr
