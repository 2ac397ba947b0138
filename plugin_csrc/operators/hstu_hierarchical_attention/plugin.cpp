// HSTUHierarchicalAttention(q, k, v, bias?, mask?, scale?, lengths?, u?, gamma?, beta?) -> y: see
// plugin_csrc/operators/hstu_hierarchical_attention/kernel.py for the maths and the arguments of its kernels
#include <algorithm>

#include "base/heads.h"
#include "base/norm_rows.h"

namespace gr {
namespace {

constexpr int32_t kLayerNorm = 1;  // as the kernels count norms

class HSTUHierarchicalAttention final : public Operator {
 public:
  void read(Node const& node) override {
    mHeads = node.integer("num_heads");
    mAlpha = node.number("alpha");
    mBiasFactor = node.choice("bias_order", {"outside_alpha", "inside_alpha"}) == 1 ? mAlpha : 1.0F;
    mNormLength = node.number("norm_length");
    mCausal = node.integer("causal") != 0;
    mNorm = static_cast<Norm>(node.choice("norm", {"none", "layer", "group"}));
    mGate = 1 + node.choice("gate_activation", {"none", "silu", "sigmoid"});
    mEpsilon = node.number("epsilon");
    mLevels = node.choice("mode", {"silu", "level_softmax"}) == 1;
    mLevelCount = node.integer("num_levels");
    mDecay = node.number("decay");
    if (mHeads < 1) {
      refuse("attribute num_heads is ", mHeads);
    }
    if (mLevels && (mCausal || mNorm != Norm::kNone)) {
      refuse("the mode level_softmax takes no norm and no causal mask");
    }
    if (mLevels && mLevelCount < 1) {
      refuse("attribute num_levels is ", mLevelCount);
    }
  }

  std::vector<nvinfer1::DimsExprs> shapes(Node const&, Shapes const& shapes) const override {
    for (char const* name : {"q", "k", "v"}) {
      checkHeads(shapes.input(name).d[2], mHeads, name);
    }
    return {shapes.input("v")};
  }

  size_t workspace(std::vector<Tensor> const& inputs) const override {
    Tensor const& v = inputs[2];
    bool const needed = isNormedAfter() && v.type != nvinfer1::DataType::kFLOAT;
    return needed ? static_cast<size_t>(v.elements()) * sizeof(float) : 0;
  }

  void run(Run const& run) const override {
    Tensor const& q = run.input("q");
    Tensor const& v = run.input("v");
    Tensor const& y = run.output("y");
    bool const wide = isNormedAfter() && y.type != nvinfer1::DataType::kFLOAT;
    void* const output = wide ? run.workspace() : y.data;
    int64_t const length = q.size(1);
    int64_t const valueSize = v.size(2) / mHeads;
    bool const isDense = run.aligned() && run.isDense({"bias", "mask"}, length);
    KernelVariant const& kernel = findKernel(kernelNames(run, q.size(2) / mHeads, valueSize, isDense));
    bool const headNorm = mNorm != Norm::kNone && !isNormedAfter();
    Arguments arguments;
    arguments.pointer(q.data).pointer(run.input("k").data).pointer(v.data);
    for (char const* name : {"bias", "mask", "scale", "lengths", "u", "gamma", "beta"}) {
      bool const ofSilu = name == std::string("bias") || name == std::string("scale") || name == std::string("u");
      if (!mLevels || !ofSilu) {
        arguments.pointer(run.dataOr(name, q.data));
      }
    }
    arguments.pointer(output).integer(length).integer(mHeads).integer(q.size(2) / mHeads).integer(valueSize);
    for (int32_t axis = 0; !mLevels && axis < 4; ++axis) {
      arguments.integer(run.strideOf("bias", axis));
    }
    for (int32_t axis = 0; axis < 4; ++axis) {
      arguments.integer(run.strideOf("mask", axis));
    }
    if (!mLevels) {
      arguments.integer(run.strideOf("scale", 0)).integer(run.strideOf("scale", 2));
    }
    arguments.integer(run.strideOf("lengths", 0));
    for (char const* name : {"gamma", "beta"}) {  // [h dv], or one number for each head
      bool const perHead = mNorm == Norm::kGroup && run.has(name) && run.input(name).elements() == mHeads;
      arguments.integer(perHead ? 1 : valueSize).integer(perHead ? 0 : 1);
    }
    if (mLevels) {
      arguments.integer(mLevelCount).float32(mDecay).float32(mAlpha).float32(mEpsilon).integer(headNorm ? 1 : 0);
      arguments.integer(run.kind("mask"));
    } else {
      float const divisor = mNormLength != 0.0F ? mNormLength : static_cast<float>(std::max<int64_t>(length, 1));
      arguments.float32(mAlpha).float32(mBiasFactor).float32(1.0F / divisor).float32(mEpsilon).integer(mCausal ? 1 : 0);
      arguments.integer(headNorm ? 1 : 0).integer(run.has("u") && !isNormedAfter() ? mGate : 0);
      arguments.integer(run.kind("bias")).integer(run.kind("mask")).integer(run.kind("scale"));
    }
    arguments.integer(run.integerKind("lengths")).integer(run.kind("gamma")).integer(run.kind("beta")).integer(wide ? 2 : 1);
    if (kernel.isMapped()) {
      for (char const* name : {"k", "v"}) {
        Tensor const& tensor = run.input(name);
        arguments.matrix(tensor.data, tensor.rows(), tensor.size(2), kernel.constant("COLUMNS"));
      }
    }
    int64_t const tiles = ceilDivide(length, kernel.constant("ROWS"));
    run.launch(kernel, {valueSize == 0 ? 0 : q.size(0) * mHeads * tiles}, arguments);
    if (isNormedAfter()) {
      NormRows rows{v.rows(), v.size(2), kLayerNorm, mEpsilon, output, y.data};
      rows.xKind = wide ? 2 : 1;
      rows.gate = "u";
      rows.activation = mGate;
      rows.lengths = "lengths";
      rows.positions = run.has("lengths") ? length : 1;
      launchNormRows(run, rows);
    }
  }

 private:
  enum class Norm { kNone, kLayer, kGroup };

  // A norm over all heads does not fit into the kernel of one head: norm_rows follows.
  bool isNormedAfter() const { return mNorm == Norm::kLayer && mHeads > 1; }

  // As in kernel.py: what `pick_tiles` gives, then what `pick` does, each with what runs where that is not compiled.
  std::vector<std::string> kernelNames(Run const& run, int64_t size, int64_t valueSize, bool dense) const {
    std::vector<std::string> names;
    if (std::string const tiled = tilesName(run, size, valueSize, dense); !tiled.empty()) {
      names = {tiled + ".large", tiled};
    }
    names.push_back(generalName(run.type(), size, valueSize, dense));
    names.push_back(generalName(run.type(), size, valueSize, false));
    return names;
  }

  // As `pick`.
  std::string generalName(char const* type, int64_t size, int64_t valueSize, bool dense) const {
    HeldSize held = heldSize(size, valueSize, dense);
    if (!mLevels && held.aligned && type != std::string("fp32")) {
      held.size = std::max<int64_t>(held.size, 64);
    }
    if (mLevels) {
      bool const small = held.aligned && held.size <= 64;
      held = {small ? 64 : 256, small};
    }
    return std::string("hstu_hierarchical_attention.") + (mLevels ? "level_softmax." : "silu.") + type + "." + held.suffix();
  }

  // As `pick_tiles`, without ".large"; empty where it has none.
  std::string tilesName(Run const& run, int64_t size, int64_t valueSize, bool dense) const {
    int32_t const bias = run.kind("bias");
    int32_t const mask = run.kind("mask");
    bool const known = bias <= 1 && (mask == 0 || mask == 3);
    bool const aligned = bias == 0 && mask == 0 ? run.aligned() : dense && run.input("q").size(1) % 8 == 0;
    bool const sized = size == valueSize && (size == 32 || size == 64 || size == 128 || size == 256);
    if (mLevels || run.type() == std::string("fp32") || !known || !aligned || !sized) {
      return "";
    }
    return std::string("hstu_hierarchical_attention.tiles.") + run.type() + ".d" + std::to_string(size) +
           (bias == 1 ? ".bias" : "") + (mask == 3 ? ".mask" : "");
  }

  int64_t mHeads{1};
  float mAlpha{1.0F};
  float mBiasFactor{1.0F};
  float mNormLength{0.0F};
  bool mCausal{false};
  Norm mNorm{};
  int32_t mGate{1};
  float mEpsilon{0.0F};
  bool mLevels{false};
  int64_t mLevelCount{1};
  float mDecay{1.0F};
};

}  // namespace

Entry hstuHierarchicalAttention() {
  return {declared(declarationOf("HSTUHierarchicalAttention"), {{"num_heads", Kind::kInt},
                                                                {"alpha", Kind::kFloat},
                                                                {"bias_order", Kind::kString},
                                                                {"norm_length", Kind::kFloat},
                                                                {"causal", Kind::kInt},
                                                                {"norm", Kind::kString},
                                                                {"gate_activation", Kind::kString},
                                                                {"epsilon", Kind::kFloat},
                                                                {"mode", Kind::kString},
                                                                {"num_levels", Kind::kInt},
                                                                {"decay", Kind::kFloat}}),
          makeOperator<HSTUHierarchicalAttention>};
}

}  // namespace gr
