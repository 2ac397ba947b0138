// FusedAttentionLayerNorm(query, key, value, attention_bias?, mask?, out_weight?, out_bias?, residual?, gamma?, beta?)
//   -> (output, residual_sum?): see plugin_csrc/operators/fused_attention_layer_norm/kernel.py for the arguments of its kernel
#include <algorithm>
#include <string>

#include "base/heads.h"
#include "base/linear.h"
#include "base/norm_rows.h"

namespace gr {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::DimsExprs;

constexpr size_t kAlignment = 256;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

class FusedAttentionLayerNorm final : public Operator {
 public:
  void read(Node const& node) override {
    mHeads = node.integer("num_heads");
    mGroups = node.integer("num_key_value_heads");
    mScale = node.number("scale");
    mMaskValue = node.number("mask_value");
    mCausal = static_cast<Causal>(node.choice("causal", {"none", "upper_left", "lower_right"}));
    mZeroMasked = node.choice("masked_row", {"nan", "zero", "uniform"}) == 1;
    mNorm = normOf(node);
    mEpsilon = node.number("epsilon");
    mHeadMajor = node.choice("layout", {"BSH", "BHSD"}) == 1;
    mProjected = node.hasInput("out_weight");
    mRim =
        mNorm != 0 || mProjected || node.hasInput("out_bias") || node.hasInput("residual") || node.output("residual_sum") >= 0;
    mWeight = node.input("out_weight");
    if (mHeads < 1 || mGroups < 1 || mHeads % mGroups != 0) {
      refuse(mHeads, " heads cannot share ", mGroups, " heads of keys and values");
    }
  }

  std::vector<DimsExprs> shapes(Node const& node, Shapes const& shapes) const override {
    int32_t const rank = mHeadMajor ? 4 : 3;
    DimsExprs const& query = shapes.input("query");
    DimsExprs const& value = shapes.input("value");
    Shapes::Expression const length = query.d[rank - 2];
    checkHeads(query.d[rank - 1], mHeadMajor ? 1 : mHeads, "query");
    checkHeads(shapes.input("key").d[rank - 1], mHeadMajor ? 1 : mGroups, "key");
    checkHeads(value.d[rank - 1], mHeadMajor ? 1 : mGroups, "value");
    int64_t const valueSize = Shapes::known(value.d[rank - 1]) / (mHeadMajor ? 1 : mGroups);
    Shapes::Expression width = shapes.constant(mHeads * valueSize);
    if (mProjected) {
      checkWeight(shapes, "out_weight");
      width = shapes.input("out_weight").d[1];
    }
    return std::vector<DimsExprs>(node.outputs().size(), Shapes::of({query.d[0], length, width}));
  }

  size_t workspace(std::vector<Tensor> const& inputs) const override {
    Geometry const sizes = geometry(inputs[0], inputs[1], inputs[2]);
    if (!mProjected) {
      return contextBytes(inputs[0].type, sizes);
    }
    int64_t const width = inputs[static_cast<size_t>(mWeight)].size(1);
    return contextBytes(inputs[0].type, sizes) +
           linearWorkspace(inputs[0].type, sizes.batch * sizes.queries, mHeads * sizes.valueSize, width, mNorm);
  }

  void run(Run const& run) const override {
    Tensor const& query = run.input("query");
    Tensor const& output = run.output("output");
    Geometry const sizes = geometry(query, run.input("key"), run.input("value"));
    int64_t const rows = sizes.batch * sizes.queries;
    bool const isDense = run.isDense({"attention_bias", "mask"}, sizes.keys);
    std::string const projected = mProjected && isDense ? projectedName(run, sizes) : "";
    if (KernelVariant const* const whole = lookUp(projected); whole != nullptr) {
      int64_t const tiles = sizes.batch * ceilDivide(sizes.queries, whole->constant("ROWS"));
      if (tiles >= multiprocessors()) {
        runProjected(run, sizes, *whole, tiles);
        return;
      }
    }
    bool const wide = mRim && !mProjected && output.type != DataType::kFLOAT;
    void* const context = mProjected || wide ? run.workspace() : output.data;
    KernelVariant const& kernel = findKernel(kernelNames(run, sizes, isDense));
    Arguments arguments;
    addOperands(run, arguments);
    arguments.pointer(context);
    addSizes(run, sizes, arguments);
    arguments.integer(wide ? 2 : 1);
    int64_t const tiles = ceilDivide(sizes.queries, kernel.constant("ROWS"));
    run.launch(kernel, {sizes.valueSize == 0 ? 0 : sizes.batch * mHeads * tiles}, arguments);
    if (mProjected) {
      Tensor const& weight = run.input("out_weight");
      Linear linear{context, rows, weight.size(0), weight.size(1), mNorm, mEpsilon};
      linear.weight = "out_weight";
      linear.bias = "out_bias";
      linear.residual = "residual";
      linear.total = "residual_sum";
      launchLinear(run, linear, static_cast<char*>(run.workspace()) + contextBytes(query.type, sizes));
    } else if (mRim) {
      NormRows normed{rows, output.size(-1), mNorm, mEpsilon, context, output.data};
      normed.xKind = wide ? 2 : 1;
      normed.bias = "out_bias";
      normed.skip = "residual";
      normed.total = "residual_sum";
      launchNormRows(run, normed);
    }
  }

 private:
  enum class Causal { kNone, kUpperLeft, kLowerRight };

  struct Geometry {
    int64_t batch;
    int64_t queries;
    int64_t keys;
    int64_t size;
    int64_t valueSize;
  };

  Geometry geometry(Tensor const& query, Tensor const& key, Tensor const& value) const {
    int64_t const heads = mHeadMajor ? 1 : mHeads;
    int64_t const groups = mHeadMajor ? 1 : mGroups;
    return {query.size(0), query.size(-2), key.size(-2), query.size(-1) / heads, value.size(-1) / groups};
  }

  void addOperands(Run const& run, Arguments& arguments) const {
    void* const query = run.input("query").data;
    arguments.pointer(query).pointer(run.input("key").data).pointer(run.input("value").data);
    arguments.pointer(run.dataOr("attention_bias", query)).pointer(run.dataOr("mask", query));
  }

  void addSizes(Run const& run, Geometry const& sizes, Arguments& arguments) const {
    arguments.integer(sizes.queries).integer(sizes.keys).integer(mHeads).integer(mGroups);
    arguments.integer(sizes.size).integer(sizes.valueSize);
    for (char const* name : {"attention_bias", "mask"}) {
      for (int32_t axis = 0; axis < 4; ++axis) {
        arguments.integer(run.strideOf(name, axis));
      }
    }
    arguments.float32(mScale).float32(mMaskValue).integer(mCausal != Causal::kNone ? 1 : 0);
    arguments.integer(mCausal == Causal::kLowerRight ? sizes.keys - sizes.queries : 0).integer(mZeroMasked ? 1 : 0);
    arguments.integer(mHeadMajor ? 1 : 0).integer(run.kind("attention_bias")).integer(run.kind("mask"));
  }

  // As in kernel.py: what `pick_whole` gives, then what `pick` does, each with what runs where that is not compiled.
  std::vector<std::string> kernelNames(Run const& run, Geometry const& sizes, bool dense) const {
    std::vector<std::string> names;
    if (std::string const whole = wholeName(run, sizes, dense); !whole.empty()) {
      names = {whole + ".large", whole};
    }
    names.push_back(generalName(run, sizes, dense));
    names.push_back(generalName(run, sizes, false));
    return names;
  }

  // As `pick`: the kernel that takes every bias and mask.
  static std::string generalName(Run const& run, Geometry const& sizes, bool dense) {
    std::string const type = run.type();
    HeldSize held = heldSize(sizes.size, sizes.valueSize, dense && run.aligned());
    if (held.aligned && type != "fp32") {
      held.size = std::max<int64_t>(held.size, 64);
    }
    return "fused_attention_layer_norm." + type + "." + held.suffix();
  }

  // As `pick_whole`, without ".large": the kernel for this bias and mask, or "" where there is none.
  std::string wholeName(Run const& run, Geometry const& sizes, bool dense) const {
    std::string const type = run.type();
    int32_t const bias = run.kind("attention_bias");
    int32_t const mask = run.kind("mask");
    bool const plain = bias == 0 && mask == 0;
    bool const known = plain || (((bias == 1 && mask == 0) || (bias == 0 && mask == 3)) && dense && sizes.keys % 8 == 0);
    bool const sized =
        sizes.size == sizes.valueSize && (sizes.size == 32 || sizes.size == 64 || sizes.size == 128 || sizes.size == 256);
    if (type == "fp32" || !run.aligned() || !known || !sized || !(mScale > 0.0F)) {
      return "";
    }
    return "fused_attention_layer_norm.whole." + type + ".d" + std::to_string(sizes.size) + (bias == 1 ? ".bias" : "") +
           (mask == 3 ? ".mask" : "");
  }

  // As `pick_projected`: the kernel that has the rim as its epilogue, or "" where there is none.
  std::string projectedName(Run const& run, Geometry const& sizes) const {
    int64_t const width = run.input("out_weight").size(1);
    bool const isAligned = run.aligned() && sizes.size % 16 == 0 && sizes.valueSize % 16 == 0 && width % 16 == 0;
    bool const fits = std::max(sizes.size, sizes.valueSize) <= 64 && width <= 512;
    if (run.output("output").type == DataType::kFLOAT || !isAligned || !fits) {
      return "";
    }
    return std::string("fused_attention_layer_norm.projected.") + run.type() + (width <= 128 ? ".h128" : ".h512");
  }

  // Attention with its whole rim in one launch.
  void runProjected(Run const& run, Geometry const& sizes, KernelVariant const& kernel, int64_t tiles) const {
    void* const query = run.input("query").data;
    Tensor const& weight = run.input("out_weight");
    Arguments arguments;
    addOperands(run, arguments);
    arguments.pointer(weight.data);
    for (char const* name : {"out_bias", "residual", "gamma", "beta"}) {
      arguments.pointer(run.dataOr(name, query));
    }
    arguments.pointer(run.output("output").data).pointer(run.dataOr("residual_sum", query));
    addSizes(run, sizes, arguments);
    arguments.integer(weight.size(1)).float32(mEpsilon).integer(mNorm);
    for (char const* name : {"out_bias", "residual", "gamma", "beta"}) {
      arguments.integer(run.kind(name));
    }
    arguments.integer(run.makes("residual_sum") ? 1 : 0);
    run.launch(kernel, {tiles}, arguments);
  }

  // What all heads write, where that is not the output.
  size_t contextBytes(DataType type, Geometry const& sizes) const {
    size_t const numbers = static_cast<size_t>(sizes.batch * sizes.queries * mHeads * sizes.valueSize);
    if (mProjected) {
      return aligned(numbers * static_cast<size_t>(elementSize(type)));
    }
    return mRim && type != DataType::kFLOAT ? numbers * sizeof(float) : 0;
  }

  int64_t mHeads{1};
  int64_t mGroups{1};
  float mScale{1.0F};
  float mMaskValue{0.0F};
  Causal mCausal{};
  bool mZeroMasked{false};
  int32_t mNorm{0};
  float mEpsilon{0.0F};
  bool mHeadMajor{false};
  bool mProjected{false};
  bool mRim{false};
  int32_t mWeight{-1};
};

}  // namespace

Entry fusedAttentionLayerNorm() {
  return {declared(declarationOf("FusedAttentionLayerNorm"), {{"num_heads", Kind::kInt},
                                                              {"num_key_value_heads", Kind::kInt},
                                                              {"scale", Kind::kFloat},
                                                              {"mask_value", Kind::kFloat},
                                                              {"causal", Kind::kString},
                                                              {"masked_row", Kind::kString},
                                                              {"norm", Kind::kString},
                                                              {"epsilon", Kind::kFloat},
                                                              {"layout", Kind::kString}}),
          makeOperator<FusedAttentionLayerNorm>};
}

}  // namespace gr
