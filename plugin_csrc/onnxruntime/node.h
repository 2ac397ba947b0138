// A node as ONNX Runtime hands it over: its attributes, its tensors, and what is said where they do not fit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "api.h"
#include "kernels/kernels.h"

namespace gr {

// What the library says no with. It becomes a status of ONNX Runtime, with the operator's name before it.
class Refusal : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The table of functions, the same for all sessions of a process.
extern api::Table ortTable;

// Throws what a failed status says.
void check(api::Status* status);

// Which element types an input may have. The types of one node's inputs need not be the same: each is widened by itself.
enum class Role {
  kFloats,   // float32, float16 or bfloat16
  kMask,     // bool, or as kFloats
  kIntegers  // int32 or int64
};

struct Input {
  char const* name;  // ends in '*' for any number of inputs name1, name2, ...
  Role role;
  bool optional;
};

struct Signature {
  char const* name;
  std::vector<Input> inputs;
  std::vector<char const*> outputs;

  // The input that a present name stands for; refuses any other.
  Input const& input(std::string const& present) const;
};

// The attributes of a node. Refuses those that are missing or of another type.
class Attributes {
 public:
  explicit Attributes(api::KernelInfo const* info) : mInfo(info) {}

  int64_t integer(char const* name) const;
  float number(char const* name) const;
  std::string text(char const* name) const;
  std::vector<int64_t> integers(char const* name) const;
  std::vector<float> numbers(char const* name) const;
  std::vector<std::string> names(char const* name) const;
  // The place of the attribute's text in `choices`; refuses any other.
  int32_t choice(char const* name, std::vector<char const*> const& choices) const;

 private:
  api::KernelInfo const* mInfo;
};

// Parts of a text between commas.
std::vector<std::string> split(std::string const& text);

struct Tensor {
  void const* data{nullptr};
  int32_t type{api::kUndefined};
  std::vector<int64_t> sizes;

  int64_t elements() const;
  Operand operand() const;
};

std::string described(Tensor const& tensor);

using Sizes = std::vector<int64_t>;
// For each axis the sizes that it may have.
using Allowed = std::vector<std::vector<int64_t>>;

// The tensors of one run.
class Run {
 public:
  Run(Signature const& signature, std::vector<std::string> const& inputs, std::vector<std::string> const& outputs,
      api::KernelContext* context);

  bool has(std::string_view input) const { return find(input) != nullptr; }
  bool makes(std::string_view output) const;
  // An input of the node; refuses where it is absent, or not of so many axes.
  Tensor const& input(std::string_view name, size_t rank) const;
  Tensor const& input(std::string_view name) const;
  // An input that may be absent, with these sizes.
  Operand optional(std::string_view name, Sizes const& sizes) const;
  // Refuses an input of other sizes.
  void require(std::string_view name, Allowed const& allowed) const;
  // A mask or a bias: [1 or batch, 1 or heads, 1 or rows, 1 or columns]; no data where it is absent.
  Plane plane(std::string_view name, Sizes const& sizes) const;
  // An output; no data where the node does not have it.
  Target output(std::string_view name, Sizes const& sizes, int32_t type) const;
  std::vector<std::string> const& names() const { return mNames; }
  std::vector<std::string> const& outputs() const { return mOutputs; }
  // All inputs, in their order.
  std::vector<Tensor> const& inputs() const { return mInputs; }
  // The CUstream that the node's execution provider launches on.
  void* stream() const;

  // Calls `work(index, scratch)` for each index below `count`, on ONNX Runtime's threads. Each call has `floats` floats of its
  // own.
  void parallel(int64_t count, int64_t floats, std::function<void(int64_t, float*)> const& work) const;

 private:
  friend class DeviceMemory;
  Tensor const* find(std::string_view name) const;

  std::vector<std::string> const& mNames;
  std::vector<std::string> const& mOutputs;
  std::vector<Tensor> mInputs;
  api::KernelContext* mContext;
};

// Memory on the device where the node's inputs are. What is launched on the node's stream before it goes may use it: ONNX Runtime
// gives it to nothing else before that is done.
class DeviceMemory {
 public:
  DeviceMemory(Run const& run, size_t bytes);
  DeviceMemory(DeviceMemory const&) = delete;
  DeviceMemory& operator=(DeviceMemory const&) = delete;
  ~DeviceMemory();

  void* data() const { return mData; }

 private:
  api::Allocator* mAllocator{nullptr};
  void* mData{nullptr};
};

// What is known of a node before it runs. Sizes that are not known are -1, with the name that the model has for them, if any.
struct KnownTensor {
  int32_t type{api::kUndefined};
  std::vector<int64_t> sizes;
  std::vector<std::string> symbols;

  // This tensor with these axes alone; of one that is not known nothing is known. ONNX Runtime takes a tensor without sizes for
  // a scalar, so that an output needs its axes even where nothing is known of the inputs.
  KnownTensor axes(std::initializer_list<size_t> kept) const;
  KnownTensor& append(int64_t size, std::string const& symbol = "");
};

class Inference {
 public:
  explicit Inference(api::ShapeContext* context);

  std::string text(char const* attribute) const;
  int64_t integer(char const* attribute) const;
  bool has(std::string_view input) const;
  KnownTensor input(std::string_view name) const;
  std::vector<std::string> const& names() const { return mNames; }
  // Does nothing where the node does not have that output.
  void output(std::string_view name, KnownTensor const& tensor) const;

 private:
  api::ShapeContext* mContext;
  std::vector<std::string> mNames;
  std::vector<std::string> mOutputs;
};

// One node, ready to run.
class Operator {
 public:
  Operator() = default;
  Operator(Operator const&) = delete;
  Operator& operator=(Operator const&) = delete;
  virtual ~Operator() = default;
  virtual void run(Run const& run) const = 0;
};

// An operator's description, how to make one from a node's attributes, and the types and sizes of its outputs.
struct Entry {
  Signature signature;
  Operator* (*make)(Attributes const& attributes);
  void (*infer)(Inference const& known);
  std::vector<char const*> modes{};  // values of the attribute `mode`, where there is one
};

template <typename Derived>
Operator* makeOperator(Attributes const& attributes) {
  return new Derived(attributes);
}

// The kernels for this machine. GR_ML_INFRA_ONNXRUNTIME_INSTRUCTIONS chooses others, for tests: plain, avx2 or avx512.
Kernels const& kernels();
// Those that this machine can run, the last the best.
std::vector<Kernels const*> availableKernels();

Entry fmInteraction();
Entry fusedEmbedLayerNorm();
Entry fusedSkipLayerNorm();
Entry fusedSwish();
Entry hierarchicalSequenceFusion();
Entry hstuHierarchicalAttention();
Entry interactionTritonFast();
Entry sequenceRecommendationInteraction();

}  // namespace gr
