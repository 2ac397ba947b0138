#include "operator.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "log.h"

namespace gr {
namespace {

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

Tensor tensorOf(PluginTensorDesc const& description, void* data) {
  nvinfer1::Dims const& dims = description.dims;
  return {description.type, {dims.d, dims.d + std::max(dims.nbDims, 0)}, data};
}

}  // namespace

char const* typeName(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return "fp32";
    case DataType::kHALF:
      return "fp16";
    case DataType::kBF16:
      return "bf16";
    default:
      refuse("there are no kernels for data type ", static_cast<int>(type));
  }
}

int64_t elementSize(DataType type) {
  switch (type) {
    case DataType::kINT64:
      return 8;
    case DataType::kFLOAT:
    case DataType::kINT32:
      return 4;
    case DataType::kHALF:
    case DataType::kBF16:
      return 2;
    default:
      return 1;
  }
}

int64_t Tensor::size(int32_t axis) const { return sizes.at(static_cast<size_t>(axis < 0 ? axis + rank() : axis)); }

int64_t Tensor::elements() const { return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>()); }

int64_t Tensor::rows() const {
  return sizes.empty() ? 1 : std::accumulate(sizes.begin(), sizes.end() - 1, int64_t{1}, std::multiplies<>());
}

int64_t Tensor::stride(int32_t axis) const {
  if (size(axis) == 1) {
    return 0;
  }
  return std::accumulate(sizes.begin() + axis + 1, sizes.end(), int64_t{1}, std::multiplies<>());
}

Shapes::Shapes(Node const& node, DimsExprs const* inputs, int32_t count, nvinfer1::IExprBuilder& builder)
    : mNode(node), mInputs(inputs), mBuilder(builder) {
  if (count != static_cast<int32_t>(node.inputs().size())) {
    refuse("the node has ", count, " inputs, its attribute inputs names ", node.inputs().size());
  }
}

DimsExprs const& Shapes::input(std::string const& name, int32_t rank) const {
  DimsExprs const& shape = mInputs[mNode.input(name)];
  if (rank >= 0 && shape.nbDims != rank) {
    refuse("input ", name, " has ", shape.nbDims, " axes, not ", rank);
  }
  return shape;
}

Shapes::Expression Shapes::constant(int64_t value) const { return mBuilder.constant(value); }

Shapes::Expression Shapes::apply(DimensionOperation operation, Expression left, Expression right) const {
  return mBuilder.operation(operation, *left, *right);
}

int64_t Shapes::known(Expression expression) { return expression->isConstant() ? expression->getConstantValue() : -1; }

DimsExprs Shapes::of(std::vector<Expression> const& sizes) {
  DimsExprs shape{};
  shape.nbDims = static_cast<int32_t>(sizes.size());
  std::copy(sizes.begin(), sizes.end(), shape.d);
  return shape;
}

Run::Run(Node const& node, PluginTensorDesc const* inputs, PluginTensorDesc const* outputs, void const* const* inputData,
         void* const* outputData, void* workspace, cudaStream_t stream)
    : mNode(node), mWorkspace(workspace), mStream(stream), mDry(outputData == nullptr) {
  for (size_t index = 0; index < node.inputs().size(); ++index) {
    // TensorRT's own inputs are const; a kernel takes all pointers alike.
    mInputs.push_back(tensorOf(inputs[index], mDry ? nullptr : const_cast<void*>(inputData[index])));
  }
  for (size_t index = 0; index < node.outputs().size(); ++index) {
    mOutputs.push_back(tensorOf(outputs[index], mDry ? nullptr : outputData[index]));
  }
}

Tensor const& Run::input(std::string_view name) const { return mInputs.at(static_cast<size_t>(mNode.input(name))); }

Tensor const& Run::output(std::string_view name) const { return mOutputs.at(static_cast<size_t>(mNode.output(name))); }

void* Run::dataOr(std::string_view name, void* otherwise) const {
  if (has(name)) {
    return input(name).data;
  }
  return makes(name) ? output(name).data : otherwise;
}

int32_t Run::kind(std::string_view name) const {
  if (!has(name)) {
    return 0;
  }
  DataType const found = input(name).type;
  if (found == DataType::kBOOL) {
    return 3;
  }
  return found == mOutputs.at(0).type ? 1 : 2;
}

int32_t Run::integerKind(std::string_view name) const { return !has(name) ? 0 : input(name).type == DataType::kINT32 ? 1 : 2; }

void Run::launch(KernelVariant const& kernel, Grid grid, Arguments& arguments) const {
  if (mDry) {
    log(Severity::kVERBOSE, std::string("kernel ") + kernel.name);
    prepareKernel(kernel);
  } else {
    launchKernel(kernel, grid, arguments, mStream);
  }
}

}  // namespace gr
