// Drives plugins without TensorRT: loads a library, makes a plugin of fields, walks it through the life that TensorRT gives it,
// and runs it on whatever GPU (or recording driver) there is. For ctypes: see onnx_fuse.runtime.plugins.harness.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../base/expressions.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace nvinfer1;

std::mutex messagesMutex;
std::string messages;

void note(std::string const& text) {
  std::lock_guard<std::mutex> const lock(messagesMutex);
  messages += text + "\n";
}

class Logger final : public ILogger {
 public:
  void log(Severity, AsciiChar const* text) noexcept override { note(text); }
};

class LoggerFinder final : public ILoggerFinder {
 public:
  ILogger* findLogger() override { return &mLogger; }
  ~LoggerFinder() override = default;

 private:
  Logger mLogger;
};

template <typename Capability>
Capability* capability(IPluginV3* plugin, PluginCapabilityType type) {
  return static_cast<Capability*>(plugin->getCapabilityInterface(type));
}

IPluginV3OneBuild* build(IPluginV3* plugin) { return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD); }

IPluginV3OneRuntime* runtime(IPluginV3* plugin) {
  return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

IPluginCreatorV3One* creator(void* library, char const* name) {
  using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
  auto const get = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
  int32_t count = 0;
  IPluginCreatorInterface* const* const all = get == nullptr ? nullptr : get(count);
  for (int32_t index = 0; index < count; ++index) {
    auto* const found = static_cast<IPluginCreatorV3One*>(all[index]);
    if (std::string(found->getPluginName()) == name) {
      return found;
    }
  }
  note(std::string("the library has no plugin ") + name);
  return nullptr;
}

}  // namespace

// A tensor as ctypes hands it over.
struct HarnessTensor {
  int32_t type;
  int32_t rank;
  int64_t sizes[8];
  void* data;
};

namespace {

PluginTensorDesc described(HarnessTensor const& tensor) {
  PluginTensorDesc description{};
  description.type = static_cast<DataType>(tensor.type);
  description.format = TensorFormat::kLINEAR;
  description.dims.nbDims = tensor.rank;
  std::copy(tensor.sizes, tensor.sizes + tensor.rank, description.dims.d);
  return description;
}

std::vector<PluginTensorDesc> described(HarnessTensor const* tensors, int32_t count) {
  std::vector<PluginTensorDesc> descriptions;
  std::transform(tensors, tensors + count, std::back_inserter(descriptions),
                 [](HarnessTensor const& tensor) { return described(tensor); });
  return descriptions;
}

std::vector<DynamicPluginTensorDesc> ranged(HarnessTensor const* tensors, int32_t count) {
  std::vector<DynamicPluginTensorDesc> descriptions;
  for (PluginTensorDesc const& description : described(tensors, count)) {
    descriptions.push_back({description, description.dims, description.dims, description.dims});
  }
  return descriptions;
}

}  // namespace

// What was logged since the last call, by any thread; valid until this thread's next.
EXPORT char const* harness_messages() {
  thread_local std::string taken;
  std::lock_guard<std::mutex> const lock(messagesMutex);
  taken = std::move(messages);
  messages.clear();
  return taken.c_str();
}

EXPORT void* harness_open(char const* path) {
  static LoggerFinder finder;
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    note(dlerror());
    return nullptr;
  }
  using SetLoggerFinder = void (*)(ILoggerFinder*);
  auto const set = reinterpret_cast<SetLoggerFinder>(dlsym(library, "setLoggerFinder"));
  if (set != nullptr) {
    set(&finder);
  }
  return library;
}

// Lines "name type" of the fields that a plugin takes; valid until this thread's next call. Null where there is no such plugin.
EXPORT char const* harness_fields(void* library, char const* name) {
  thread_local std::string lines;
  IPluginCreatorV3One* const found = creator(library, name);
  if (found == nullptr) {
    return nullptr;
  }
  lines.clear();
  PluginFieldCollection const& fields = *found->getFieldNames();
  for (int32_t index = 0; index < fields.nbFields; ++index) {
    PluginField const& field = fields.fields[index];
    lines += std::string(field.name) + " " + std::to_string(static_cast<int>(field.type)) + "\n";
  }
  return lines.c_str();
}

EXPORT void* harness_create(void* library, char const* name, PluginField const* fields, int32_t count) {
  IPluginCreatorV3One* const found = creator(library, name);
  PluginFieldCollection const collection{count, fields};
  return found == nullptr ? nullptr : found->createPlugin(name, &collection, TensorRTPhase::kBUILD);
}

// What serialising, reading back, cloning and attaching make of a plugin.
EXPORT void* harness_reborn(void* library, void* plugin) {
  auto* const given = static_cast<IPluginV3*>(plugin);
  auto* const core = capability<IPluginV3OneCore>(given, PluginCapabilityType::kCORE);
  IPluginCreatorV3One* const found = creator(library, core->getPluginName());
  std::unique_ptr<IPluginV3> const read(
      found->createPlugin(core->getPluginName(), runtime(given)->getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
  std::unique_ptr<IPluginV3> const cloned(read == nullptr ? nullptr : read->clone());
  return cloned == nullptr ? nullptr : runtime(cloned.get())->attachToContext(nullptr);
}

// The plugin of another execution context, as TensorRT asks an engine's plugin for it.
EXPORT void* harness_attach(void* plugin) { return runtime(static_cast<IPluginV3*>(plugin))->attachToContext(nullptr); }

EXPORT void harness_destroy(void* plugin) { delete static_cast<IPluginV3*>(plugin); }

EXPORT int32_t harness_output_count(void* plugin) { return build(static_cast<IPluginV3*>(plugin))->getNbOutputs(); }

// Fills in types and shapes of the outputs. Sizes of the inputs are taken as known at build time where `known` is not 0.
EXPORT int32_t harness_outputs(void* plugin, HarnessTensor const* inputs, int32_t inputCount, HarnessTensor* outputs,
                               int32_t outputCount, int32_t known) {
  IPluginV3OneBuild* const phase = build(static_cast<IPluginV3*>(plugin));
  std::vector<DataType> inputTypes;
  std::vector<DimsExprs> shapes;
  gr::ExpressionBuilder builder;
  for (int32_t index = 0; index < inputCount; ++index) {
    inputTypes.push_back(static_cast<DataType>(inputs[index].type));
    DimsExprs& shape = shapes.emplace_back();
    shape.nbDims = inputs[index].rank;
    for (int32_t axis = 0; axis < shape.nbDims; ++axis) {
      shape.d[axis] = builder.dimension(inputs[index].sizes[axis], known != 0);
    }
  }
  std::vector<DataType> outputTypes(static_cast<size_t>(outputCount));
  int32_t status = phase->getOutputDataTypes(outputTypes.data(), outputCount, inputTypes.data(), inputCount);
  std::vector<DimsExprs> outputShapes(static_cast<size_t>(outputCount));
  if (status == 0) {
    status = phase->getOutputShapes(shapes.data(), inputCount, nullptr, 0, outputShapes.data(), outputCount, builder);
  }
  for (int32_t index = 0; status == 0 && index < outputCount; ++index) {
    DimsExprs const& shape = outputShapes[static_cast<size_t>(index)];
    outputs[index].type = static_cast<int32_t>(outputTypes[static_cast<size_t>(index)]);
    outputs[index].rank = shape.nbDims;
    for (int32_t axis = 0; axis < shape.nbDims; ++axis) {
      outputs[index].sizes[axis] = static_cast<gr::Expression const*>(shape.d[axis])->value();
    }
  }
  return status;
}

// Whether the plugin takes the tensors' types, asked position by position as TensorRT does; -1 or the first that it refuses.
EXPORT int32_t harness_refused_position(void* plugin, HarnessTensor const* inputs, int32_t inputCount,
                                        HarnessTensor const* outputs, int32_t outputCount) {
  std::vector<DynamicPluginTensorDesc> tensors = ranged(inputs, inputCount);
  for (DynamicPluginTensorDesc const& output : ranged(outputs, outputCount)) {
    tensors.push_back(output);
  }
  for (int32_t position = 0; position < inputCount + outputCount; ++position) {
    if (!build(static_cast<IPluginV3*>(plugin))->supportsFormatCombination(position, tensors.data(), inputCount, outputCount)) {
      return position;
    }
  }
  return -1;
}

namespace {

// How many ways there are to give types and formats to the tensors from `position` on, asked as TensorRT asks.
int32_t combinations(IPluginV3OneBuild* phase, std::vector<DynamicPluginTensorDesc>& tensors, int32_t position,
                     int32_t inputCount) {
  auto const count = static_cast<int32_t>(tensors.size());
  if (position == count) {
    return 1;
  }
  int32_t found = 0;
  PluginTensorDesc& asked = tensors[static_cast<size_t>(position)].desc;
  for (int32_t type = 0; type <= static_cast<int32_t>(DataType::kFP4); ++type) {
    for (TensorFormat const format : {TensorFormat::kLINEAR, TensorFormat::kCHW2, TensorFormat::kHWC8, TensorFormat::kHWC}) {
      asked.type = static_cast<DataType>(type);
      asked.format = format;
      if (phase->supportsFormatCombination(position, tensors.data(), inputCount, count - inputCount)) {
        found += combinations(phase, tensors, position + 1, inputCount);
      }
    }
  }
  return found;
}

}  // namespace

// How many combinations of types and formats the plugin takes; the types of the tensors do not count.
EXPORT int32_t harness_combinations(void* plugin, HarnessTensor const* inputs, int32_t inputCount, HarnessTensor const* outputs,
                                    int32_t outputCount) {
  std::vector<DynamicPluginTensorDesc> tensors = ranged(inputs, inputCount);
  for (DynamicPluginTensorDesc const& output : ranged(outputs, outputCount)) {
    tensors.push_back(output);
  }
  return combinations(build(static_cast<IPluginV3*>(plugin)), tensors, 0, inputCount);
}

// What TensorRT keeps timings of the plugin by; valid as long as the plugin. Null for none.
EXPORT char const* harness_timing_id(void* plugin) { return build(static_cast<IPluginV3*>(plugin))->getTimingCacheID(); }

EXPORT int64_t harness_workspace(void* plugin, HarnessTensor const* inputs, int32_t inputCount, HarnessTensor const* outputs,
                                 int32_t outputCount) {
  IPluginV3OneBuild* const phase = build(static_cast<IPluginV3*>(plugin));
  std::vector<DynamicPluginTensorDesc> const in = ranged(inputs, inputCount);
  std::vector<DynamicPluginTensorDesc> const out = ranged(outputs, outputCount);
  if (phase->configurePlugin(in.data(), inputCount, out.data(), outputCount) != 0) {
    return -1;
  }
  return static_cast<int64_t>(phase->getWorkspaceSize(in.data(), inputCount, out.data(), outputCount));
}

EXPORT int32_t harness_shape_change(void* plugin, HarnessTensor const* inputs, int32_t inputCount, HarnessTensor const* outputs,
                                    int32_t outputCount) {
  std::vector<PluginTensorDesc> const in = described(inputs, inputCount);
  std::vector<PluginTensorDesc> const out = described(outputs, outputCount);
  return runtime(static_cast<IPluginV3*>(plugin))->onShapeChange(in.data(), inputCount, out.data(), outputCount);
}

EXPORT int32_t harness_enqueue(void* plugin, HarnessTensor const* inputs, int32_t inputCount, HarnessTensor const* outputs,
                               int32_t outputCount, void* workspace, void* stream) {
  std::vector<PluginTensorDesc> const in = described(inputs, inputCount);
  std::vector<PluginTensorDesc> const out = described(outputs, outputCount);
  std::vector<void const*> inputData;
  std::vector<void*> outputData;
  std::for_each(inputs, inputs + inputCount, [&](HarnessTensor const& tensor) { inputData.push_back(tensor.data); });
  std::for_each(outputs, outputs + outputCount, [&](HarnessTensor const& tensor) { outputData.push_back(tensor.data); });
  // The recording driver then refuses what may wait for the device.
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  auto const enqueuing = reinterpret_cast<void (*)(int)>(driver == nullptr ? nullptr : dlsym(driver, "fake_cuda_enqueuing"));
  if (enqueuing != nullptr) {
    enqueuing(1);
  }
  int32_t const status =
      runtime(static_cast<IPluginV3*>(plugin))
          ->enqueue(in.data(), out.data(), inputData.data(), outputData.data(), workspace, static_cast<cudaStream_t>(stream));
  if (enqueuing != nullptr) {
    enqueuing(0);
  }
  return status;
}
