// FusedEmbedLayerNorm(ids_1, table_1, ids_2, table_2, ..., gamma?, beta?) -> (output, embedding_sum?): norm of the sum of rows
#include <algorithm>
#include <array>

#include "base/norm_rows.h"

namespace gr {
namespace {

constexpr int32_t kSlots = 8;

// As `pick` in fused_embed_layer_norm.py; `plain`: all tables are of type T.
std::string kernelName(Run const& run, int64_t width, bool plain) {
  static constexpr std::array<int64_t, 8> kHeld{64, 128, 256, 384, 512, 768, 1024, 4096};
  std::string const name = std::string("fused_embed_layer_norm.") + run.type() + ".";
  auto const held = std::lower_bound(kHeld.begin(), kHeld.end(), width);
  bool const whole = width % run.vector() == 0 && held != kHeld.end();
  return name + (whole && plain && run.aligned() ? std::to_string(*held) : "any");
}

std::string ids(int32_t slot) { return "ids_" + std::to_string(slot + 1); }

std::string table(int32_t slot) { return "table_" + std::to_string(slot + 1); }

class FusedEmbedLayerNorm final : public Operator {
 public:
  void read(Node const& node) override {
    mTables = static_cast<int32_t>(node.integer("num_tables"));
    mNorm = normOf(node);
    mEpsilon = node.number("epsilon");
    if (mTables < 1 || mTables > kSlots) {
      refuse("the kernel takes 1 to ", kSlots, " tables, not ", mTables);
    }
    for (int32_t slot = 0; slot < mTables; ++slot) {
      if (!node.hasInput(ids(slot)) || !node.hasInput(table(slot))) {
        refuse("num_tables is ", mTables, ", but ", ids(slot), " or ", table(slot), " is missing");
      }
    }
  }

  std::vector<nvinfer1::DimsExprs> shapes(Node const& node, Shapes const& shapes) const override {
    Shapes::Expression const width = shapes.input(table(0)).d[1];
    Shapes::Expression batch = nullptr;
    Shapes::Expression positions = nullptr;
    for (int32_t slot = 0; slot < mTables; ++slot) {
      nvinfer1::DimsExprs const& shape = shapes.input(ids(slot));
      batch = broadcast(shapes, batch, shape.d[0]);
      positions = broadcast(shapes, positions, shape.d[1]);
    }
    return std::vector<nvinfer1::DimsExprs>(node.outputs().size(), Shapes::of({batch, positions, width}));
  }

  void run(Run const& run) const override {
    Tensor const& output = run.output("output");
    int64_t const batch = output.size(0);
    int64_t const positions = output.size(1);
    int64_t const width = output.size(2);
    int64_t const tableKinds = bits([&](int32_t slot) { return run.kind(table(slot)) == 2; });
    KernelVariant const& kernel = findKernel(kernelName(run, width, tableKinds == 0));
    Arguments arguments;
    for (int32_t slot = 0; slot < kSlots; ++slot) {
      arguments.pointer(run.input(ids(used(slot))).data);
    }
    for (int32_t slot = 0; slot < kSlots; ++slot) {
      arguments.pointer(run.input(table(used(slot))).data);
    }
    for (int32_t slot = 0; slot < kSlots; ++slot) {
      arguments.integer(run.input(table(used(slot))).size(0));
    }
    void* const first = run.input(table(0)).data;
    arguments.pointer(run.dataOr("gamma", first)).pointer(run.dataOr("beta", first));
    arguments.pointer(output.data).pointer(run.dataOr("embedding_sum", first));
    arguments.integer(batch * positions).integer(width).integer(positions).float32(mEpsilon).integer(mNorm).integer(mTables);
    arguments.integer(bits([&](int32_t slot) { return run.integerKind(ids(slot)) == 2; }));
    arguments.integer(tableKinds);
    arguments.integer(bits([&](int32_t slot) { return run.input(ids(slot)).size(0) == 1; }));
    arguments.integer(bits([&](int32_t slot) { return run.input(ids(slot)).size(1) == 1; }));
    arguments.integer(run.kind("gamma")).integer(run.kind("beta")).integer(run.makes("embedding_sum") ? 1 : 0);
    int64_t const programs = width == 0 ? 0 : ceilDivide(batch * positions, kernel.constant("ROWS"));
    run.launch(kernel, {programs}, arguments);
  }

 private:
  // The slot that fills one: itself, or the first for those that the node does not have.
  int32_t used(int32_t slot) const { return slot < mTables ? slot : 0; }

  template <typename Predicate>
  int64_t bits(Predicate const& predicate) const {
    int64_t set = 0;
    for (int32_t slot = 0; slot < mTables; ++slot) {
      set |= predicate(slot) ? int64_t{1} << slot : 0;
    }
    return set;
  }

  // Sizes are equal or 1, which gives way: of two that are not known now it is the greater one, or 0 where one of them is.
  static Shapes::Expression broadcast(Shapes const& shapes, Shapes::Expression a, Shapes::Expression b) {
    if (a == nullptr || Shapes::known(a) == 1) {
      return b;
    }
    if (Shapes::known(b) == 1) {
      return a;
    }
    Shapes::Expression const least = shapes.apply(nvinfer1::DimensionOperation::kMIN, a, b);
    return shapes.apply(nvinfer1::DimensionOperation::kPROD, shapes.apply(nvinfer1::DimensionOperation::kMAX, a, b),
                        shapes.apply(nvinfer1::DimensionOperation::kMIN, least, shapes.constant(1)));
  }

  int32_t mTables{0};
  int32_t mNorm{0};
  float mEpsilon{0.0F};
};

}  // namespace

Entry fusedEmbedLayerNorm() {
  return {declared(declarationOf("FusedEmbedLayerNorm"),
                   {{"num_tables", Kind::kInt}, {"norm", Kind::kString}, {"epsilon", Kind::kFloat}}),
          makeOperator<FusedEmbedLayerNorm>};
}

}  // namespace gr
