// InteractionTritonFast(E | dense, sparse | feature_1, feature_2, ...) -> output: the chosen triangle of E E^T, row by row
#include <algorithm>

#include "base/operator.h"

namespace gr {
namespace {

constexpr int64_t kSlots = 64;
constexpr int64_t kProgramsOfMultiprocessor = 8;

// As `pick` in kernel.py, and what runs where that is not compiled.
std::vector<std::string> kernelNames(Run const& run, int64_t features, int64_t size) {
  std::string const name = std::string("interaction_triton_fast.") + run.type();
  std::vector<std::string> names{name + ".any"};
  if (size % 16 == 0 && run.aligned()) {
    names.insert(names.begin(), name + (features <= 16 ? ".f16" : features <= 32 ? ".f32" : ".f64"));
  }
  return names;
}

class InteractionTritonFast final : public Operator {
 public:
  void read(Node const& node) override {
    mUpper = node.choice("triangle", {"lower", "upper"});
    mDiagonal = node.integer("self_interaction");
    mDense = static_cast<Dense>(node.choice("concat_dense", {"none", "first", "last"}));
    bool const stacked = node.hasInput("E");
    bool const split = node.hasInput("dense") && node.hasInput("sparse");
    mForm = stacked ? Form::kStacked : split ? Form::kDenseAndSparse : Form::kSeparate;
    size_t const wanted = stacked ? 1 : 2;
    if (mForm == Form::kSeparate ? node.hasInput("dense") || node.hasInput("sparse") : node.inputs().size() != wanted) {
      refuse("its inputs have to be E, or dense and sparse, or features");
    }
    if (mDiagonal != 0 && mDiagonal != 1) {
      refuse("attribute self_interaction is ", mDiagonal, ", not 0 or 1");
    }
  }

  std::vector<nvinfer1::DimsExprs> shapes(Node const& node, Shapes const& shapes) const override {
    int32_t const rank = mForm == Form::kStacked ? 3 : 2;
    nvinfer1::DimsExprs const& first = shapes.input(node.inputs().at(0));
    Shapes::Expression const size = first.d[rank - 1];
    Shapes::Expression features = shapes.constant(static_cast<int64_t>(node.inputs().size()));
    if (mForm == Form::kStacked) {
      features = first.d[1];
    } else if (mForm == Form::kDenseAndSparse) {
      features = shapes.apply(nvinfer1::DimensionOperation::kSUM, shapes.input("sparse").d[1], shapes.constant(1));
    }
    if (Shapes::known(features) > kSlots) {
      refuse("the kernel takes up to ", kSlots, " features, not ", Shapes::known(features));
    }
    // F (F - 1) / 2, or F (F + 1) / 2 with the diagonal.
    auto const other = mDiagonal == 0 ? nvinfer1::DimensionOperation::kSUB : nvinfer1::DimensionOperation::kSUM;
    Shapes::Expression const twice =
        shapes.apply(nvinfer1::DimensionOperation::kPROD, features, shapes.apply(other, features, shapes.constant(1)));
    Shapes::Expression width = shapes.apply(nvinfer1::DimensionOperation::kFLOOR_DIV, twice, shapes.constant(2));
    if (mDense != Dense::kNone) {
      width = shapes.apply(nvinfer1::DimensionOperation::kSUM, width, size);
    }
    return {Shapes::of({first.d[0], width})};
  }

  void run(Run const& run) const override {
    std::vector<Tensor> const& inputs = run.inputs();
    Tensor const& first = inputs.at(0);
    int64_t const batch = first.size(0);
    int64_t const size = first.size(-1);
    int64_t const given = static_cast<int64_t>(inputs.size());
    int64_t const features = mForm == Form::kSeparate  ? given
                             : mForm == Form::kStacked ? first.size(1)
                                                       : 1 + inputs.at(1).size(1);
    if (features > kSlots) {
      refuse("the kernel takes up to ", kSlots, " features, not ", features);
    }
    int64_t const pairs = features * (features - 1) / 2 + features * mDiagonal;
    int64_t const stride = pairs + (mDense == Dense::kNone ? 0 : size);
    KernelVariant const& kernel = findKernel(kernelNames(run, features, size));
    Arguments arguments;
    for (int64_t slot = 0; slot < kSlots; ++slot) {
      arguments.pointer(inputs[static_cast<size_t>(slot < given ? slot : 0)].data);
    }
    arguments.pointer(run.output("output").data).integer(batch).integer(features).integer(size);
    arguments.integer(static_cast<int32_t>(mForm)).integer(mUpper).integer(mDiagonal);
    arguments.integer(mDense == Dense::kFirst ? size : 0);
    arguments.integer(mDense == Dense::kNone ? -1 : mDense == Dense::kFirst ? 0 : pairs).integer(stride);
    int64_t const tiles = stride == 0 ? 0 : ceilDivide(batch, kernel.constant("SAMPLES"));
    run.launch(kernel, {std::min(tiles, kProgramsOfMultiprocessor * multiprocessors())}, arguments);
  }

 private:
  enum class Form { kSeparate, kStacked, kDenseAndSparse };
  enum class Dense { kNone, kFirst, kLast };

  Form mForm{};
  Dense mDense{};
  int32_t mUpper{0};
  int64_t mDiagonal{0};
};

}  // namespace

Entry interactionTritonFast() {
  return {declared(declarationOf("InteractionTritonFast"),
                   {{"triangle", Kind::kString}, {"self_interaction", Kind::kInt}, {"concat_dense", Kind::kString}}),
          makeOperator<InteractionTritonFast>};
}

}  // namespace gr
