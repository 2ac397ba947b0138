// FusedEmbedLayerNorm(ids_1, table_1, ids_2, table_2, ..., gamma?, beta?) -> output, embedding_sum?
#include "norm_sum.h"

namespace gr {
namespace {

int64_t idAt(Tensor const& ids, int64_t at) {
  return ids.type == api::kInt64 ? static_cast<int64_t const*>(ids.data)[at] : static_cast<int32_t const*>(ids.data)[at];
}

class FusedEmbedLayerNorm final : public NormOfSum {
 public:
  explicit FusedEmbedLayerNorm(Attributes const& node) : NormOfSum(node), mTables(node.integer("num_tables")) {
    if (mTables < 1) throw Refusal("attribute num_tables is " + std::to_string(mTables) + "; it must be positive");
  }

  void run(Run const& run) const override {
    int64_t const width = run.input("table_1", 2).sizes[1];
    int64_t batch = 1, positions = 1;
    for (int64_t i = 1; i <= mTables; ++i) {
      Sizes const& sizes = run.input("ids_" + std::to_string(i), 2).sizes;
      batch = sizes[0] != 1 ? sizes[0] : batch;
      positions = sizes[1] != 1 ? sizes[1] : positions;
    }
    std::vector<Term> terms;
    for (int64_t i = 1; i <= mTables; ++i) {
      std::string const idsName = "ids_" + std::to_string(i), tableName = "table_" + std::to_string(i);
      run.require(idsName, {{1, batch}, {1, positions}});
      Tensor const& ids = run.input(idsName);
      Tensor const& table = run.input(tableName, 2);
      int64_t const count = table.sizes[0];
      run.require(tableName, {{count}, {width}});
      for (int64_t at = 0; at < ids.elements(); ++at) {
        int64_t const id = idAt(ids, at);
        if (id < -count || id >= count) {
          throw Refusal("input " + idsName + " has the id " + std::to_string(id) + "; " + tableName + " has " +
                        std::to_string(count) + " rows, so it must be from " + std::to_string(-count) + " to " +
                        std::to_string(count - 1));
        }
      }
      terms.push_back({table.operand(), width, ids.data, ids.type == api::kInt64, ids.sizes[0] == 1 ? 0 : ids.sizes[1],
                       ids.sizes[1] == 1 ? 0 : 1, count});
    }
    runRows(run, terms, "embedding_sum", {batch, positions, width}, positions, run.input("table_1").type);
  }

 private:
  int64_t mTables;
};

void infer(Inference const& known) {
  KnownTensor const table = known.input("table_1").axes({1});
  KnownTensor output = known.input("ids_1").axes({0, 1});
  for (int64_t i = 2; i <= known.integer("num_tables"); ++i) {
    KnownTensor const ids = known.input("ids_" + std::to_string(i)).axes({0, 1});
    for (size_t axis = 0; axis < 2; ++axis) {
      if (output.sizes[axis] != 1) continue;  // these ids are the same along it
      output.sizes[axis] = ids.sizes[axis];
      output.symbols[axis] = ids.symbols[axis];
    }
  }
  output.type = table.type;
  output.append(table.sizes[0], table.symbols[0]);
  for (char const* name : {"output", "embedding_sum"}) known.output(name, output);
}

}  // namespace

Entry fusedEmbedLayerNorm() {
  return {{"FusedEmbedLayerNorm",
           {{"ids_*", Role::kIntegers, false},
            {"table_*", Role::kFloats, false},
            {"gamma", Role::kFloats, true},
            {"beta", Role::kFloats, true}},
           {"output", "embedding_sum"}},
          makeOperator<FusedEmbedLayerNorm>,
          infer};
}

}  // namespace gr
