// HSTUHierarchicalAttention(q, k, v, bias?, mask?, scale?, lengths?, u?, gamma?, beta?) -> y
#include "node.h"

namespace gr {
namespace {

std::vector<char const*> const kModes{"silu", "level_softmax"};

int64_t headSize(Run const& run, char const* name, int64_t heads) {
  int64_t const width = run.input(name, 3).sizes[2];
  if (width % heads != 0) {
    throw Refusal("input " + std::string(name) + " is " + described(run.input(name)) +
                  "; its last axis must be a multiple of the " + std::to_string(heads) + " heads");
  }
  return width / heads;
}

class HSTUHierarchicalAttention final : public Operator {
 public:
  explicit HSTUHierarchicalAttention(Attributes const& node)
      : mHeads(node.integer("num_heads")),
        mAlpha(node.number("alpha")),
        mInside(node.choice("bias_order", {"outside_alpha", "inside_alpha"}) == 1),
        mNormLength(node.number("norm_length")),
        mCausal(node.integer("causal") != 0),
        mNorm(node.choice("norm", {"none", "layer", "group"})),
        mGate(static_cast<Gate>(node.choice("gate_activation", {"none", "silu", "sigmoid"}))),
        mEpsilon(node.number("epsilon")),
        mLevels(node.choice("mode", kModes) == 1 ? node.integer("num_levels") : 0),
        mDecay(node.number("decay")) {
    if (mHeads < 1) throw Refusal("attribute num_heads is " + std::to_string(mHeads) + "; it must be positive");
    if (node.text("mode") == "level_softmax") {
      if (mLevels < 1) throw Refusal("attribute num_levels is " + std::to_string(mLevels) + "; it must be positive");
      for (std::string const& input : node.names("inputs")) {
        if (input == "bias" || input == "scale" || input == "u")
          throw Refusal("the mode level_softmax takes no input " + input);
      }
      if (mCausal) throw Refusal("the mode level_softmax takes no causal mask");
    }
  }

  void run(Run const& run) const override {
    Tensor const& q = run.input("q", 3);
    Tensor const& v = run.input("v", 3);
    int64_t const batches = q.sizes[0], length = q.sizes[1];
    run.require("k", {{batches}, {length}, {q.sizes[2]}});
    run.require("v", {{batches}, {length}, {v.sizes[2]}});
    Hstu a{};
    a.batches = batches;
    a.length = length;
    a.heads = mHeads;
    a.size = headSize(run, "q", mHeads);
    a.valueSize = headSize(run, "v", mHeads);
    a.q = q.operand();
    a.k = run.input("k").operand();
    a.v = v.operand();
    a.u = run.optional("u", v.sizes);
    a.bias = run.plane("bias", {batches, mHeads, length, length});
    a.mask = run.plane("mask", {batches, mHeads, length, length});
    Plane const scale = run.plane("scale", {batches, 1, length, 1});
    a.scale = scale.operand;
    a.scaleBatch = scale.batch;
    a.scaleRow = scale.row;
    if (run.has("lengths")) {
      run.require("lengths", {{1, batches}});
      a.lengthsBatch = run.input("lengths").sizes[0] == 1 ? 0 : 1;
      a.lengths = run.input("lengths").data;
      a.wideLengths = run.input("lengths").type == api::kInt64;
    }
    a.alpha = mAlpha;
    a.biasInsideAlpha = mInside;
    a.inverseLength = 1.F / (mNormLength != 0.F ? mNormLength : static_cast<float>(length == 0 ? 1 : length));
    a.epsilon = mEpsilon;
    a.causal = mCausal;
    a.norm = mNorm == 1 ? Norm::kLayer : mNorm == 2 ? Norm::kGroup : Norm::kNone;
    a.gamma = affine(run, "gamma", a, a.gammaOfHeads);
    a.beta = affine(run, "beta", a, a.betaOfHeads);
    a.gate = mGate;
    a.levels = mLevels;
    a.decay = mDecay;
    a.y = run.output("y", v.sizes, q.type);
    if (v.elements() == 0) return;

    std::vector<uint8_t> const maskExtents = extentsOf(run, a, false), biasExtents = biasExtentsOf(run, a);
    a.maskExtents = maskExtents.empty() ? nullptr : maskExtents.data();
    a.biasExtents = biasExtents.empty() ? nullptr : biasExtents.data();
    // The rows of a task share the packed keys and the values: many rows, but tasks enough for the threads.
    int64_t const all = batches * length;
    int64_t const rows = all >= 8 * 384 ? 384 : all >= 8 * 192 ? 192 : all >= 8 * 96 ? 96 : 48;
    int64_t const tiles = (length + rows - 1) / rows;
    Kernels const& with = kernels();
    run.parallel(batches * tiles, with.hstuScratch(a, std::min(rows, length)), [&](int64_t task, float* scratch) {
      int64_t const row = (tiles - 1 - task / batches) * rows;  // those first that see the most keys, where that differs
      with.hstu(a, task % batches, row, std::min(row + rows, length), scratch);
    });
  }

 private:
  // gamma or beta, and whether it has one number for each head.
  static Operand affine(Run const& run, char const* name, Hstu const& a, bool& ofHeads) {
    int64_t const width = a.heads * a.valueSize;
    if (run.has(name)) run.require(name, a.norm == Norm::kGroup ? Allowed{{width, a.heads}} : Allowed{{width}});
    ofHeads = run.has(name) && run.input(name).sizes[0] != width;
    return run.has(name) ? run.input(name).operand() : Operand{nullptr, Element::kFloat32};
  }

  // See `hstuExtents`; empty where there is none.
  static std::vector<uint8_t> extentsOf(Run const& run, Hstu const& a, bool ofBias) {
    Plane const& plane = ofBias ? a.bias : a.mask;
    if (plane.operand.data == nullptr) return {};
    int64_t const planes = (plane.batch == 0 ? 1 : a.batches) * (plane.head == 0 ? 1 : a.heads);
    int64_t const groups = planes * (plane.row == 0 ? 1 : (a.length + kGroupRows - 1) / kGroupRows);
    int64_t const blocks = (a.length + kBlockKeys - 1) / kBlockKeys, step = std::max<int64_t>(1, 4096 / blocks);
    std::vector<uint8_t> extents(static_cast<size_t>(groups * blocks));
    run.parallel((groups + step - 1) / step, 0, [&](int64_t task, float*) {
      kernels().hstuExtents(a, ofBias, task * step, std::min((task + 1) * step, groups), extents.data());
    });
    return extents;
  }

  // The same of a bias that masks, such as one of -1e9 above the diagonal. A bias is read for it where the first row's last
  // column is that low; and it masks where no product of q and k can make up for it.
  static std::vector<uint8_t> biasExtentsOf(Run const& run, Hstu const& a) {
    if (a.bias.operand.data == nullptr || a.bias.row == 0 || a.bias.column == 0) return {};
    Hstu last = a;
    last.length = 1;  // one row, one column: the corner
    last.bias.operand.data =
        static_cast<char const*>(a.bias.operand.data) + (a.length - 1) * (a.bias.operand.element == Element::kFloat32 ? 4 : 2);
    uint8_t corner = 0;
    kernels().hstuExtents(last, true, 0, 1, &corner);
    if (corner != 0) return {};
    int64_t const vectors = a.batches * a.length * a.heads, step = 1024, tasks = (vectors + step - 1) / step;
    std::vector<float> q(static_cast<size_t>(tasks)), k(static_cast<size_t>(tasks));
    run.parallel(tasks, (a.size + 63) / 64 * 64, [&](int64_t task, float* scratch) {
      int64_t const begin = task * step, end = std::min(begin + step, vectors);
      q[static_cast<size_t>(task)] = kernels().hstuSquare(a.q, a.size, begin, end, scratch);
      k[static_cast<size_t>(task)] = kernels().hstuSquare(a.k, a.size, begin, end, scratch);
    });
    float const bound = *std::max_element(q.begin(), q.end()) * *std::max_element(k.begin(), k.end()) * a.alpha * a.alpha;
    return bound <= kNoWeight * kNoWeight / 4 ? extentsOf(run, a, true) : std::vector<uint8_t>{};
  }

  int64_t mHeads;
  float mAlpha;
  bool mInside;
  float mNormLength;
  bool mCausal;
  int32_t mNorm;
  Gate mGate;
  float mEpsilon;
  int64_t mLevels;
  float mDecay;
};

void infer(Inference const& known) {
  KnownTensor y = known.input("v").axes({0, 1, 2});
  y.type = known.input("q").type;
  known.output("y", y);
}

}  // namespace

Entry hstuHierarchicalAttention() {
  return {{"HSTUHierarchicalAttention",
           {{"q", Role::kFloats, false},
            {"k", Role::kFloats, false},
            {"v", Role::kFloats, false},
            {"bias", Role::kFloats, true},
            {"mask", Role::kMask, true},
            {"scale", Role::kFloats, true},
            {"lengths", Role::kIntegers, true},
            {"u", Role::kFloats, true},
            {"gamma", Role::kFloats, true},
            {"beta", Role::kFloats, true}},
           {"y"}},
          makeOperator<HSTUHierarchicalAttention>,
          infer,
          kModes};
}

}  // namespace gr
