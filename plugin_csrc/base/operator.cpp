#include "operator.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

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

bool isMultiple(void const* data, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0;
}

// Whether a tensor begins at a multiple of so many bytes; one without elements is not read.
bool beginsAt(Tensor const& tensor, int64_t bytes) { return tensor.elements() == 0 || isMultiple(tensor.data, bytes); }

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
         void* const* outputData, void* workspace, cudaStream_t stream, bool aligned)
    : mNode(node), mWorkspace(workspace), mStream(stream), mDry(outputData == nullptr), mAligned(aligned) {
  for (size_t index = 0; index < node.inputs().size(); ++index) {
    // TensorRT's own inputs are const; a kernel takes all pointers alike.
    mInputs.push_back(tensorOf(inputs[index], mDry ? nullptr : const_cast<void*>(inputData[index])));
  }
  for (size_t index = 0; index < node.outputs().size(); ++index) {
    mOutputs.push_back(tensorOf(outputs[index], mDry ? nullptr : outputData[index]));
  }
}

Run::Run(Node const& node, PluginTensorDesc const* inputs, PluginTensorDesc const* outputs, void const* const* inputData,
         void* const* outputData, void* workspace, cudaStream_t stream)
    : Run(node, inputs, outputs, inputData, outputData, workspace, stream, true) {
  for (auto const* tensors : {&mInputs, &mOutputs}) {
    mAligned = mAligned && std::all_of(tensors->begin(), tensors->end(),
                                       [](Tensor const& tensor) { return beginsAt(tensor, kPointerAlignment); });
  }
}

Run::Run(Node const& node, PluginTensorDesc const* inputs, PluginTensorDesc const* outputs, bool aligned)
    : Run(node, inputs, outputs, nullptr, nullptr, nullptr, nullptr, aligned) {}

Tensor const& Run::input(std::string_view name) const { return mInputs.at(static_cast<size_t>(mNode.input(name))); }

Tensor const& Run::output(std::string_view name) const { return mOutputs.at(static_cast<size_t>(mNode.output(name))); }

bool Run::isDense(std::initializer_list<char const*> inputs, int64_t length) const {
  return std::all_of(inputs.begin(), inputs.end(),
                     [&](char const* name) { return !has(name) || input(name).size(-1) == length; });
}

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

void Run::checkAlignment(KernelVariant const& kernel, Arguments const& arguments) const {
  auto const check = [&](char const* side, std::vector<std::string> const& names, std::vector<Tensor> const& tensors) {
    for (size_t index = 0; index < tensors.size(); ++index) {
      int64_t const needed = std::max<int64_t>(kernel.alignment, elementSize(tensors[index].type));
      if (!beginsAt(tensors[index], needed)) {
        refuse(side, " ", names[index], " begins at address ", tensors[index].data, "; the kernel ", kernel.name,
               " takes multiples of ", needed, " bytes");
      }
    }
  };
  check("input", mNode.inputs(), mInputs);
  check("output", mNode.outputs(), mOutputs);
  for (size_t index = 0; index < arguments.mKinds.size(); ++index) {
    void const* const data = arguments.mValues[index].pointer;
    auto const isData = [&](Tensor const& tensor) { return tensor.data == data; };
    bool const isTensor =
        std::any_of(mInputs.begin(), mInputs.end(), isData) || std::any_of(mOutputs.begin(), mOutputs.end(), isData);
    if (arguments.mKinds[index] == 'p' && !isTensor && !isMultiple(data, kernel.alignment)) {
      refuse("the workspace begins at address ", mWorkspace, "; the kernel ", kernel.name, " takes multiples of ",
             kernel.alignment, " bytes");
    }
  }
}

void Run::launch(KernelVariant const& kernel, Grid grid, Arguments& arguments) const {
  if (mDry) {
    log(Severity::kVERBOSE, std::string(mAligned ? "kernel " : "unaligned kernel ") + kernel.name);
    prepareKernel(kernel);
  } else if (!grid.isEmpty()) {
    checkAlignment(kernel, arguments);
    checkLaunch(kernel, grid, arguments);
    arguments.makeMaps();
    mLaunches.push_back({kernel, grid, std::move(arguments)});
  }
}

void Run::start() const {
  for (Launch& launch : mLaunches) {
    launchKernel(launch.kernel, launch.grid, launch.arguments, mStream);
  }
}

}  // namespace gr
