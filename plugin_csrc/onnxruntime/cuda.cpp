#include "cuda.h"

#include <dlfcn.h>

namespace gr {
namespace {

constexpr char const* kLibrary = "libgr_ml_infra_tensorrt_plugins.so";

void find(Plugins& found) {
  Dl_info here{};
  dladdr(reinterpret_cast<void const*>(&plugins), &here);
  std::string const own = here.dli_fname;
  std::string const path = own.substr(0, own.rfind('/') + 1) + kLibrary;
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  auto const tell =
      reinterpret_cast<calls::Table const* (*)()>(library == nullptr ? nullptr : dlsym(library, calls::kFunction));
  calls::Table const* const table = tell == nullptr ? nullptr : tell();
  if (library == nullptr) {
    found.reason = std::string("no plugin library: ") + dlerror();
  } else if (table == nullptr || table->version != calls::kVersion) {
    found.reason = path + " is of another version";
  } else if (!table->ready()) {
    found.reason = path + ": " + table->error();
  } else {
    found.table = table;
  }
}

[[noreturn]] void refuseFor(calls::Table const& table) { throw Refusal(table.error()); }

// The attributes that the plugin library's operator has, as far as the node gives them.
class Given {
 public:
  Given(calls::Table const& table, char const* operation, Attributes const& attributes) {
    char const* name = nullptr;
    calls::Kind kind{};
    for (int32_t place = 0; table.attribute(operation, place, &name, &kind); ++place) {
      try {
        add(name, kind, attributes);
      } catch (Refusal const&) {
        // The operator knows whether it can do without.
      }
    }
    for (char const* always : {"inputs", "outputs"}) add(always, calls::kString, attributes);
  }

  std::vector<calls::Attribute> const& all() const { return mAll; }

 private:
  // What a description points to stays where it is.
  struct Value {
    std::vector<int64_t> integers;
    std::vector<float> numbers;
    std::string text;
  };

  void add(char const* name, calls::Kind kind, Attributes const& attributes) {
    auto value = std::make_unique<Value>();
    auto const describe = [&](auto const& values) {
      mAll.push_back({name, kind, static_cast<int32_t>(values.size()), values.data()});
    };
    switch (kind) {
      case calls::kInt:
        value->integers = {attributes.integer(name)};
        break;
      case calls::kInts:
        value->integers = attributes.integers(name);
        break;
      case calls::kFloat:
        value->numbers = {attributes.number(name)};
        break;
      case calls::kFloats:
        value->numbers = attributes.numbers(name);
        break;
      case calls::kString:
        value->text = attributes.text(name);
        break;
    }
    if (kind == calls::kString) {
      describe(value->text);
    } else if (kind == calls::kInt || kind == calls::kInts) {
      describe(value->integers);
    } else {
      describe(value->numbers);
    }
    mValues.push_back(std::move(value));
  }

  std::vector<std::unique_ptr<Value>> mValues;
  std::vector<calls::Attribute> mAll;
};

class CudaOperator final : public Operator {
 public:
  CudaOperator(calls::Table const& table, char const* operation, Attributes const& attributes) : mTable(table) {
    Given const given(table, operation, attributes);
    mNode = table.create(operation, given.all().data(), static_cast<int32_t>(given.all().size()));
    if (mNode == nullptr) refuseFor(table);
  }
  ~CudaOperator() override { mTable.destroy(mNode); }

  void run(Run const& run) const override {
    std::vector<calls::Tensor> inputs, outputs;
    for (Tensor const& tensor : run.inputs()) {
      // A kernel takes all pointers alike.
      inputs.push_back(
          {tensor.type, static_cast<int32_t>(tensor.sizes.size()), tensor.sizes.data(), const_cast<void*>(tensor.data)});
    }
    std::vector<calls::Output> made(run.outputs().size());
    auto const inputCount = static_cast<int32_t>(inputs.size()), outputCount = static_cast<int32_t>(made.size());
    int64_t const bytes = mTable.prepare(mNode, inputs.data(), inputCount, made.data(), outputCount);
    if (bytes < 0) refuseFor(mTable);
    for (size_t i = 0; i < made.size(); ++i) {
      Target const target = run.output(run.outputs()[i], {made[i].sizes, made[i].sizes + made[i].rank}, made[i].type);
      outputs.push_back({made[i].type, made[i].rank, made[i].sizes, target.data});
    }
    DeviceMemory const workspace(run, static_cast<size_t>(bytes));
    if (!mTable.run(mNode, inputs.data(), inputCount, outputs.data(), outputCount, workspace.data(), run.stream())) {
      refuseFor(mTable);
    }
  }

 private:
  calls::Table const& mTable;
  void* mNode;
};

}  // namespace

Plugins const& plugins() {
  static Plugins const found = [] {
    Plugins fresh;
    find(fresh);
    return fresh;
  }();
  return found;
}

std::unique_ptr<Operator> makeCudaOperator(char const* operation, Attributes const& attributes) {
  return std::make_unique<CudaOperator>(*plugins().table, operation, attributes);
}

}  // namespace gr
