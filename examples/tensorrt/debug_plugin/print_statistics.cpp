// gr.ml.debug::PrintStatistics: passes a float32 tensor on as it is, and prints its shape and statistics at every run.
//
// Put it between two layers of a network to see what goes through. It waits for the stream, so it is slow, and it cannot be
// captured in a CUDA graph. CUDA's driver is opened at the first run: the library loads where there is none.
#include <NvInferRuntime.h>
#include <cuda.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

namespace {

using namespace nvinfer1;

constexpr char const* kName = "PrintStatistics";
constexpr char const* kVersion = "1";
constexpr char const* kNamespace = "gr.ml.debug";

struct Driver {
  decltype(&::cuMemcpyAsync) copy{};
  decltype(&::cuStreamSynchronize) synchronize{};
};

// The functions of the driver; null where there is none.
Driver const& driver() {
  static Driver const opened = [] {
    Driver found{};
    if (void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)) {
      found.copy = reinterpret_cast<decltype(found.copy)>(dlsym(library, "cuMemcpyAsync"));
      found.synchronize = reinterpret_cast<decltype(found.synchronize)>(dlsym(library, "cuStreamSynchronize"));
    }
    return found;
  }();
  return opened;
}

std::string textOf(Dims const& shape) {
  std::string text = "[";
  for (int32_t axis = 0; axis < shape.nbDims; ++axis) {
    text += (axis == 0 ? "" : ", ") + std::to_string(shape.d[axis]);
  }
  return text + "]";
}

// Statistics of what is finite, and how much is not.
void print(std::string const& label, Dims const& shape, std::vector<float> const& values) {
  double sum = 0, squares = 0;
  float least = std::numeric_limits<float>::infinity(), most = -least;
  size_t finite = 0;
  for (float const value : values) {
    if (std::isfinite(value)) {
      ++finite;
      sum += value;
      squares += double(value) * value;
      least = std::fmin(least, value);
      most = std::fmax(most, value);
    }
  }
  double const mean = finite == 0 ? 0 : sum / double(finite);
  double const deviation = finite == 0 ? 0 : std::sqrt(std::fmax(squares / double(finite) - mean * mean, 0));
  std::printf("%s %s: min %g, max %g, mean %g, deviation %g, not finite %zu\n", label.c_str(), textOf(shape).c_str(),
              double(least), double(most), mean, deviation, values.size() - finite);
  std::fflush(stdout);
}

class PrintStatistics final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
 public:
  explicit PrintStatistics(std::string label) : mLabel(std::move(label)) {}

  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE:
        return static_cast<IPluginV3OneCore*>(this);
      case PluginCapabilityType::kBUILD:
        return static_cast<IPluginV3OneBuild*>(this);
      case PluginCapabilityType::kRUNTIME:
        return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  IPluginV3* clone() noexcept override { return new PrintStatistics(mLabel); }
  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

  char const* getPluginName() const noexcept override { return kName; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  char const* getPluginNamespace() const noexcept override { return kNamespace; }
  int32_t getNbOutputs() const noexcept override { return 1; }

  bool supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors, int32_t, int32_t) noexcept override {
    PluginTensorDesc const& tensor = tensors[position].desc;
    return tensor.type == DataType::kFLOAT && tensor.format == TensorFormat::kLINEAR;
  }
  int32_t getOutputDataTypes(DataType* outputs, int32_t, DataType const* inputs, int32_t) const noexcept override {
    outputs[0] = inputs[0];
    return 0;
  }
  int32_t getOutputShapes(DimsExprs const* inputs, int32_t, DimsExprs const*, int32_t, DimsExprs* outputs, int32_t,
                          IExprBuilder&) noexcept override {
    outputs[0] = inputs[0];
    return 0;
  }
  int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*, int32_t) noexcept override {
    return 0;
  }
  int32_t onShapeChange(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) noexcept override { return 0; }

  int32_t enqueue(PluginTensorDesc const* inputs, PluginTensorDesc const*, void const* const* from, void* const* to, void*,
                  cudaStream_t stream) noexcept override {
    if (driver().copy == nullptr || driver().synchronize == nullptr) {
      return 1;
    }
    size_t count = 1;
    for (int32_t axis = 0; axis < inputs[0].dims.nbDims; ++axis) {
      count *= static_cast<size_t>(inputs[0].dims.d[axis]);
    }
    std::vector<float> values(count);
    auto const source = reinterpret_cast<CUdeviceptr>(from[0]);
    size_t const bytes = count * sizeof(float);
    bool const failed = driver().copy(reinterpret_cast<CUdeviceptr>(to[0]), source, bytes, stream) != CUDA_SUCCESS ||
                        driver().copy(reinterpret_cast<CUdeviceptr>(values.data()), source, bytes, stream) != CUDA_SUCCESS ||
                        driver().synchronize(stream) != CUDA_SUCCESS;
    if (!failed) {
      print(mLabel, inputs[0].dims, values);
    }
    return failed ? 1 : 0;
  }

  PluginFieldCollection const* getFieldsToSerialize() noexcept override {
    mField = {"label", mLabel.c_str(), PluginFieldType::kCHAR, static_cast<int32_t>(mLabel.size())};
    mFields = {1, &mField};
    return &mFields;
  }

 private:
  std::string mLabel;
  PluginField mField{};
  PluginFieldCollection mFields{};
};

class Creator final : public IPluginCreatorV3One {
 public:
  IPluginV3* createPlugin(char const* name, PluginFieldCollection const* fields, TensorRTPhase) noexcept override {
    std::string label = name;
    for (int32_t index = 0; index < fields->nbFields; ++index) {
      PluginField const& field = fields->fields[index];
      if (std::string(field.name) == "label" && field.type == PluginFieldType::kCHAR) {
        label.assign(static_cast<char const*>(field.data), static_cast<size_t>(field.length));
        label = label.c_str();  // the length may count the zero at the end
      }
    }
    return new PrintStatistics(label);
  }
  PluginFieldCollection const* getFieldNames() noexcept override { return &mFields; }
  char const* getPluginName() const noexcept override { return kName; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  char const* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  PluginField mField{"label", nullptr, PluginFieldType::kCHAR, 1};
  PluginFieldCollection mFields{1, &mField};
};

}  // namespace

// What TensorRT looks for in a plugin library.
extern "C" IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static Creator creator;
  static IPluginCreatorInterface* const all[] = {&creator};
  count = 1;
  return all;
}

extern "C" void setLoggerFinder(ILoggerFinder*) {}
