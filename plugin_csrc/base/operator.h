// What an operator has to tell: its description, its output shapes, its workspace and its launch.
#pragma once

#include <NvInferRuntime.h>

#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels.h"
#include "node.h"
#include "refusal.h"

namespace gr {

// "fp32", "fp16" or "bf16": how kernels name an element type. Refuses any other.
char const* typeName(nvinfer1::DataType type);
int64_t elementSize(nvinfer1::DataType type);

// A tensor at run time, with its sizes; `data` is null while kernels are only prepared.
struct Tensor {
  nvinfer1::DataType type{};
  std::vector<int64_t> sizes;
  void* data{nullptr};

  int64_t size(int32_t axis) const;  // from the end where negative
  int64_t rank() const { return static_cast<int64_t>(sizes.size()); }
  int64_t elements() const;
  // Elements of all axes but the last.
  int64_t rows() const;
  // Elements from one index to the next along an axis; 0 along one of size 1, which broadcasts.
  int64_t stride(int32_t axis) const;
};

// Output shapes as expressions of the input shapes.
class Shapes {
 public:
  using Expression = nvinfer1::IDimensionExpr const*;

  Shapes(Node const& node, nvinfer1::DimsExprs const* inputs, int32_t count, nvinfer1::IExprBuilder& builder);

  // The shape of an input of the node; refuses where its rank is not `rank` (-1: any).
  nvinfer1::DimsExprs const& input(std::string const& name, int32_t rank = -1) const;
  Expression constant(int64_t value) const;
  Expression apply(nvinfer1::DimensionOperation operation, Expression left, Expression right) const;
  // The size of an axis where it is known now, else -1.
  static int64_t known(Expression expression);
  static nvinfer1::DimsExprs of(std::vector<Expression> const& sizes);

 private:
  Node const& mNode;
  nvinfer1::DimsExprs const* mInputs;
  nvinfer1::IExprBuilder& mBuilder;
};

// Bytes that pointers are a multiple of, as all kernels expect but the slower ones called ".any".
constexpr int64_t kPointerAlignment = 16;

// The tensors of one run. In a dry run kernels are looked up and loaded, but nothing is launched.
class Run {
 public:
  Run(Node const& node, nvinfer1::PluginTensorDesc const* inputs, nvinfer1::PluginTensorDesc const* outputs,
      void const* const* inputData, void* const* outputData, void* workspace, cudaStream_t stream);
  // A dry run; `aligned` says of what tensors.
  Run(Node const& node, nvinfer1::PluginTensorDesc const* inputs, nvinfer1::PluginTensorDesc const* outputs, bool aligned);

  bool has(std::string_view input) const { return mNode.hasInput(input); }
  bool makes(std::string_view output) const { return mNode.output(output) >= 0; }
  Tensor const& input(std::string_view name) const;
  Tensor const& output(std::string_view name) const;
  // All inputs, in their order.
  std::vector<Tensor> const& inputs() const { return mInputs; }
  // The stride of an optional input along an axis; 0 where the node does not have it.
  int64_t strideOf(std::string_view name, int32_t axis) const { return has(name) ? input(name).stride(axis) : 0; }
  // Whether those of the inputs that the node has do not broadcast their last axis, which is of this length.
  bool isDense(std::initializer_list<char const*> inputs, int64_t length) const;
  // The data of an input or output, or `otherwise` where the node does not have it.
  void* dataOr(std::string_view name, void* otherwise) const;
  // What a pointer given for an optional tensor points to, as the kernels count it: 0 nothing, 1 T, 2 float32, 3 bytes.
  int32_t kind(std::string_view name) const;
  // The same for integers: 0 nothing, 1 int32, 2 int64.
  int32_t integerKind(std::string_view name) const;
  // The element type T of the node.
  char const* type() const { return typeName(mOutputs.at(0).type); }
  // Elements of type T in 16 bytes, the most that a thread loads or stores at once.
  int64_t vector() const { return kPointerAlignment / elementSize(mOutputs.at(0).type); }
  void* workspace() const { return mWorkspace; }
  // Whether all tensors begin at multiples of kPointerAlignment; TensorRT may hand over slices of others, which do not.
  bool aligned() const { return mAligned; }

  // Launches a kernel when `start` is called, and takes its arguments; an empty grid launches nothing. Refuses what the kernel does not take, such as
  // tensors that do not begin where it expects them to.
  void launch(KernelVariant const& kernel, Grid grid, Arguments& arguments) const;
  // Nothing is launched before all launches are known to be right.
  void start() const;

 private:
  struct Launch {
    KernelVariant const& kernel;
    Grid grid;
    Arguments arguments;
  };

  Run(Node const& node, nvinfer1::PluginTensorDesc const* inputs, nvinfer1::PluginTensorDesc const* outputs,
      void const* const* inputData, void* const* outputData, void* workspace, cudaStream_t stream, bool aligned);
  void checkAlignment(KernelVariant const& kernel, Arguments const& arguments) const;

  Node const& mNode;
  std::vector<Tensor> mInputs;
  std::vector<Tensor> mOutputs;
  void* mWorkspace;
  cudaStream_t mStream;
  bool mDry;
  bool mAligned;
  mutable std::vector<Launch> mLaunches;
};

class Operator {
 public:
  virtual ~Operator() = default;
  Operator() = default;
  Operator(Operator const&) = delete;
  Operator& operator=(Operator const&) = delete;

  // Takes what it needs from the attributes; refuses values that it has no kernel for.
  virtual void read(Node const& node) = 0;
  // The shapes of the node's outputs, in their order.
  virtual std::vector<nvinfer1::DimsExprs> shapes(Node const& node, Shapes const& shapes) const = 0;
  // Bytes needed for the largest sizes.
  virtual size_t workspace(std::vector<Tensor> const& inputs) const {
    static_cast<void>(inputs);
    return 0;
  }
  virtual void run(Run const& run) const = 0;
};

// An operator's description and how to make one.
struct Entry {
  Signature signature;
  std::unique_ptr<Operator> (*make)();
};

// Every operator of the library.
std::vector<Entry> const& operators();

template <typename Derived>
std::unique_ptr<Operator> makeOperator() {
  return std::make_unique<Derived>();
}

inline int64_t ceilDivide(int64_t value, int64_t by) { return (value + by - 1) / by; }

}  // namespace gr
