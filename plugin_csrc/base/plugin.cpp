#include "plugin.h"

#include <algorithm>
#include <exception>
#include <iterator>
#include <utility>

#include "checks.h"
#include "log.h"

namespace gr {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginFieldType;

constexpr int32_t kFailure = 1;

// What `function` returns, or `otherwise` where it throws, whose reason is logged: nothing is thrown into TensorRT.
template <typename Result, typename Function>
Result guarded(char const* name, Result otherwise, Function&& function) noexcept {
  try {
    return std::forward<Function>(function)();
  } catch (std::exception const& error) {
    try {
      log(Severity::kERROR, std::string(name) + ": " + error.what());
    } catch (...) {  // no memory for the message
    }
    return otherwise;
  }
}

TensorSizes sizesOf(nvinfer1::PluginTensorDesc const* tensors, int32_t count) {
  TensorSizes sizes;
  for (int32_t index = 0; index < count; ++index) {
    nvinfer1::Dims const& dims = tensors[index].dims;
    sizes.emplace_back(dims.d, dims.d + std::max(dims.nbDims, 0));
  }
  return sizes;
}

PluginFieldType fieldType(Kind kind) {
  switch (kind) {
    case Kind::kInt:
    case Kind::kInts:
      return PluginFieldType::kINT32;
    case Kind::kFloat:
    case Kind::kFloats:
      return PluginFieldType::kFLOAT32;
    case Kind::kString:
      break;
  }
  return PluginFieldType::kCHAR;
}

}  // namespace

Plugin::Plugin(Entry const& entry, Node node) : mEntry(entry), mNode(std::move(node)), mOperator(entry.make()) {
  mOperator->read(mNode);
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  return guarded<nvinfer1::IPluginV3*>(getPluginName(), nullptr, [&] {
    auto made = std::make_unique<Plugin>(mEntry, mNode);
    made->mTypes = mTypes;
    return made.release();
  });
}

nvinfer1::AsciiChar const* Plugin::getPluginName() const noexcept { return mEntry.signature.name; }

nvinfer1::AsciiChar const* Plugin::getPluginVersion() const noexcept { return mEntry.signature.version; }

nvinfer1::AsciiChar const* Plugin::getPluginNamespace() const noexcept { return mEntry.signature.pluginNamespace; }

int32_t Plugin::getNbOutputs() const noexcept { return static_cast<int32_t>(mNode.outputs().size()); }

int32_t Plugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const*, int32_t, nvinfer1::DynamicPluginTensorDesc const*,
                                int32_t) noexcept {
  return 0;
}

bool Plugin::supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t inputCount,
                                       int32_t) noexcept {
  return guarded(getPluginName(), false, [&] {
    nvinfer1::PluginTensorDesc const& tensor = tensors[position].desc;
    int32_t const first = dataInput(mEntry.signature, mNode);
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR) {
      return false;
    }
    if (position == first) {
      return mEntry.signature.takes(tensor.type);
    }
    // What stands before the first data tensor is an index: its type does not depend on it.
    DataType const data = position > first ? tensors[first].desc.type : tensor.type;
    if (position >= inputCount) {
      return tensor.type == data;
    }
    auto const input = static_cast<size_t>(position);
    // Types that go together are many, where there are many inputs; TensorRT looks at no more than 100, and times each. Those
    // that the network does not have are none that it needs: what has the node's type there has it here, the others keep theirs.
    if (!mTypes.empty() && tensor.type != (mTypes.at(input) == mTypes.at(static_cast<size_t>(first)) ? data : mTypes[input])) {
      return false;
    }
    return allows(mEntry.signature.input(mNode.inputs().at(input))->role, tensor.type, data);
  });
}

int32_t Plugin::getOutputDataTypes(DataType* outputTypes, int32_t outputCount, DataType const* inputTypes,
                                   int32_t inputCount) const noexcept {
  return guarded(getPluginName(), kFailure, [&] {
    DataType const data = checkTypes(mEntry.signature, mNode, inputTypes, inputCount);
    std::fill(outputTypes, outputTypes + outputCount, data);
    mTypes.assign(inputTypes, inputTypes + inputCount);
    return 0;
  });
}

int32_t Plugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t inputCount, nvinfer1::DimsExprs const*, int32_t,
                                nvinfer1::DimsExprs* outputs, int32_t outputCount, nvinfer1::IExprBuilder& builder) noexcept {
  return guarded(getPluginName(), kFailure, [&] {
    Shapes const known(mNode, inputs, inputCount, builder);
    TensorSizes sizes;
    for (int32_t index = 0; index < inputCount; ++index) {
      std::vector<int64_t>& axes = sizes.emplace_back();
      std::transform(inputs[index].d, inputs[index].d + inputs[index].nbDims, std::back_inserter(axes), Shapes::known);
    }
    checkShapes(mEntry.signature, mNode, sizes, {});
    auto const shapes = mOperator->shapes(mNode, known);
    if (outputCount != static_cast<int32_t>(shapes.size())) {
      refuse("the node has ", outputCount, " outputs, its attribute outputs names ", shapes.size());
    }
    std::copy(shapes.begin(), shapes.end(), outputs);
    return 0;
  });
}

size_t Plugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t inputCount,
                                nvinfer1::DynamicPluginTensorDesc const*, int32_t) const noexcept {
  return guarded(getPluginName(), size_t{0}, [&] {
    if (inputCount != static_cast<int32_t>(mNode.inputs().size())) {
      refuse("the node has ", inputCount, " inputs, its attribute inputs names ", mNode.inputs().size());
    }
    std::vector<Tensor> tensors;
    for (int32_t index = 0; index < inputCount; ++index) {
      nvinfer1::Dims const& largest = inputs[index].max;
      tensors.push_back({inputs[index].desc.type, {largest.d, largest.d + std::max(largest.nbDims, 0)}, nullptr});
    }
    return mOperator->workspace(tensors);
  });
}

int32_t Plugin::onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t inputCount,
                              nvinfer1::PluginTensorDesc const* outputs, int32_t outputCount) noexcept {
  return guarded(getPluginName(), kFailure, [&] {
    mRefusal.clear();
    try {
      checkShapes(mEntry.signature, mNode, sizesOf(inputs, inputCount), sizesOf(outputs, outputCount));
    } catch (Refusal const& refusal) {
      mRefusal = refusal.what();
      throw;
    }
    // Nothing is loaded later, when a stream may be captured or others wait.
    for (bool const aligned : {true, false}) {
      mOperator->run(Run(mNode, inputs, outputs, aligned));
    }
    return 0;
  });
}

int32_t Plugin::enqueue(nvinfer1::PluginTensorDesc const* inputs, nvinfer1::PluginTensorDesc const* outputs,
                        void const* const* inputData, void* const* outputData, void* workspace, cudaStream_t stream) noexcept {
  return guarded(getPluginName(), kFailure, [&] {
    if (!mRefusal.empty()) {
      refuse(mRefusal);
    }
    Run const run(mNode, inputs, outputs, inputData, outputData, workspace, stream);
    mOperator->run(run);
    run.start();
    return 0;
  });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

nvinfer1::PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept {
  return guarded<nvinfer1::PluginFieldCollection const*>(getPluginName(), nullptr, [&] { return &mNode.fields(); });
}

char const* Plugin::getTimingCacheID() noexcept {
  return guarded<char const*>(getPluginName(), nullptr, [&] {
    if (mTimingId.empty()) {
      mTimingId = mNode.described() + kernelDigest();
    }
    return mTimingId.c_str();
  });
}

Creator::Creator(Entry const& entry) : mEntry(entry) {
  for (Attribute const& attribute : entry.signature.attributes) {
    mFields.emplace_back(attribute.name, nullptr, fieldType(attribute.kind), 1);
  }
  mFields.emplace_back("inputs", nullptr, PluginFieldType::kCHAR, 1);
  mFields.emplace_back("outputs", nullptr, PluginFieldType::kCHAR, 1);
  mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
}

nvinfer1::IPluginV3* Creator::createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fields,
                                           nvinfer1::TensorRTPhase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(name == nullptr ? getPluginName() : name, nullptr, [&]() -> nvinfer1::IPluginV3* {
    if (fields == nullptr) {
      refuse(getPluginName(), ": no fields");
    }
    return new Plugin(mEntry, Node(mEntry.signature, *fields));
  });
}

nvinfer1::PluginFieldCollection const* Creator::getFieldNames() noexcept { return &mCollection; }

nvinfer1::AsciiChar const* Creator::getPluginName() const noexcept { return mEntry.signature.name; }

nvinfer1::AsciiChar const* Creator::getPluginVersion() const noexcept { return mEntry.signature.version; }

nvinfer1::AsciiChar const* Creator::getPluginNamespace() const noexcept { return mEntry.signature.pluginNamespace; }

}  // namespace gr
