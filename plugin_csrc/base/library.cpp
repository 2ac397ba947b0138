// What the shared library exports: for TensorRT, trtexec's --dynamicPlugins, and callers from C and ctypes.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string_view>

#include "log.h"
#include "plugin.h"

#define GR_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

std::vector<nvinfer1::IPluginCreatorInterface*> const& creators() {
  static std::deque<gr::Creator> all;
  static std::vector<nvinfer1::IPluginCreatorInterface*> const pointers = [] {
    std::vector<nvinfer1::IPluginCreatorInterface*> made;
    for (gr::Entry const& entry : gr::operators()) {
      made.push_back(&all.emplace_back(entry));
    }
    return made;
  }();
  return pointers;
}

// The registry of the TensorRT of this process need not be the one of the headers: TensorRT 11 and TensorRT-RTX have dropped
// four methods of IPluginV2, so that registerCreator(IPluginCreatorInterface&, char const*) stands elsewhere in its table.
bool registerCreator(nvinfer1::IPluginRegistry* registry, nvinfer1::IPluginCreatorInterface* creator, char const* space) {
  using Method = bool (*)(nvinfer1::IPluginRegistry*, nvinfer1::IPluginCreatorInterface*, char const*);
  auto const version = reinterpret_cast<int32_t (*)()>(gr::findInTensorRT("getInferLibVersion"));
  bool const ten = version != nullptr && version() / 10000 == 10;
  return (*reinterpret_cast<Method const**>(registry))[ten ? 12 : 8](registry, creator, space);
}

}  // namespace

GR_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  count = static_cast<int32_t>(creators().size());
  return creators().data();
}

GR_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { gr::setLoggerFinder(finder); }

// Registers every plugin with the TensorRT of this process. Returns 0, -1 where no TensorRT is loaded, or the number of plugins
// that it refused (because they are registered already).
GR_EXPORT int32_t initialize_gr_ml_infra_plugins() {
  auto const get = reinterpret_cast<nvinfer1::IPluginRegistry* (*)()>(gr::findInTensorRT("getPluginRegistry"));
  if (get == nullptr) {
    return -1;
  }
  int32_t refused = 0;
  for (size_t index = 0; index < creators().size(); ++index) {
    char const* const space = gr::operators()[index].signature.pluginNamespace;
    refused += registerCreator(get(), creators()[index], space) ? 0 : 1;
  }
  return refused;
}

// Triton Inference Server opens the libraries of `plugins=` and asks for no creators. Registering always would not do: TensorRT
// refuses creators that it asks for itself and has already.
__attribute__((constructor)) static void registerIfAsked() {
  if (std::getenv("ONNX_FUSE_REGISTER_PLUGINS") != nullptr) {
    initialize_gr_ml_infra_plugins();
  }
}

// How many plugins the library has.
GR_EXPORT int32_t get_num_registered_plugins() { return static_cast<int32_t>(creators().size()); }

// What a plugin of this name has kernels for: 90 for machine code of sm_90, -80 for PTX of sm_80. Returns how many there are, of
// which `capacity` are written; -1 where the library has no such plugin.
GR_EXPORT int32_t get_plugin_architectures(char const* name, int32_t* architectures, int32_t capacity) {
  auto const isNamed = [&](nvinfer1::IPluginCreatorInterface* creator) {
    return std::string_view(static_cast<gr::Creator*>(creator)->getPluginName()) == name;
  };
  if (std::none_of(creators().begin(), creators().end(), isNamed)) {
    return -1;
  }
  std::vector<int32_t> const found = gr::kernelArchitectures();
  std::copy_n(found.begin(), std::min(found.size(), static_cast<size_t>(std::max(capacity, 0))), architectures);
  return static_cast<int32_t>(found.size());
}

// Bytes of workspace that a node needs for inputs of these types and sizes; -1 where the library has no such plugin, or it
// refuses the attributes. TensorRT, which has none to give inside If, Loop and Scan, does not tell before it fails to build.
GR_EXPORT int64_t get_plugin_workspace(char const* name, nvinfer1::PluginFieldCollection const* fields,
                                       nvinfer1::PluginTensorDesc const* inputs, int32_t count) {
  for (nvinfer1::IPluginCreatorInterface* found : creators()) {
    auto* const creator = static_cast<gr::Creator*>(found);
    if (std::string_view(creator->getPluginName()) != name) {
      continue;
    }
    std::unique_ptr<nvinfer1::IPluginV3> const made(creator->createPlugin(name, fields, nvinfer1::TensorRTPhase::kBUILD));
    if (made == nullptr) {
      return -1;
    }
    std::vector<nvinfer1::DynamicPluginTensorDesc> descriptions;
    for (int32_t index = 0; index < count; ++index) {
      nvinfer1::Dims const& sizes = inputs[index].dims;
      descriptions.push_back({inputs[index], sizes, sizes, sizes});
    }
    return static_cast<int64_t>(static_cast<gr::Plugin*>(made.get())->getWorkspaceSize(descriptions.data(), count, nullptr, 0));
  }
  return -1;
}
