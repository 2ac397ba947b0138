// run_swish PLUGIN_LIBRARY [RUNS]: builds a network of one FusedSwish plugin with TensorRT's C++ API, runs it on [32, 16], and
// compares the last run with x * sigmoid(x). Made to be profiled:
//
//     nsys profile ./run_swish libgr_ml_infra_tensorrt_plugins.so 100
//     ncu --kernel-name regex:swish ./run_swish libgr_ml_infra_tensorrt_plugins.so 1
//
// TensorRT and CUDA are opened while it runs. The layout of TensorRT's classes is that of its headers, so the library has to be
// libnvinfer of the major version it was compiled with; TensorRT-RTX has another layout.
#include <NvInfer.h>
#include <cuda.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace nvinfer1;

constexpr int64_t kMaxRows = 32;
constexpr int64_t kColumns = 16;

void* opened(std::string const& library) {
  void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) {
    throw std::runtime_error(std::string("cannot be loaded: ") + dlerror());
  }
  return handle;
}

template <typename Function>
Function found(void* library, char const* name) {
  void* const place = dlsym(library, name);
  if (place == nullptr) {
    throw std::runtime_error(std::string("there is no function ") + name);
  }
  return reinterpret_cast<Function>(place);
}

template <typename T>
std::unique_ptr<T> made(T* object, char const* what) {
  if (object == nullptr) {
    throw std::runtime_error(std::string("TensorRT makes no ") + what);
  }
  return std::unique_ptr<T>(object);
}

class Logger final : public ILogger {
  void log(Severity severity, char const* text) noexcept override {
    if (severity <= Severity::kWARNING) {
      std::fprintf(stderr, "TensorRT: %s\n", text);
    }
  }
};

// The functions of CUDA's driver that a run needs.
struct Driver {
  explicit Driver(void* library)
      : init(found<decltype(init)>(library, "cuInit")),
        retain(found<decltype(retain)>(library, "cuDevicePrimaryCtxRetain")),
        setCurrent(found<decltype(setCurrent)>(library, "cuCtxSetCurrent")),
        allocate(found<decltype(allocate)>(library, "cuMemAlloc_v2")),
        createStream(found<decltype(createStream)>(library, "cuStreamCreate")),
        copy(found<decltype(copy)>(library, "cuMemcpyAsync")),
        synchronize(found<decltype(synchronize)>(library, "cuStreamSynchronize")) {}

  decltype(&::cuInit) init;
  decltype(&::cuDevicePrimaryCtxRetain) retain;
  decltype(&::cuCtxSetCurrent) setCurrent;
  decltype(&::cuMemAlloc) allocate;
  decltype(&::cuStreamCreate) createStream;
  decltype(&::cuMemcpyAsync) copy;
  decltype(&::cuStreamSynchronize) synchronize;
};

void check(CUresult result, char const* what) {
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error(std::string(what) + " failed with CUDA error " + std::to_string(result));
  }
}

std::unique_ptr<IHostMemory> built(IBuilder& builder, IPluginRegistry& registry) {
  auto const creator = static_cast<IPluginCreatorV3One*>(registry.getCreator("FusedSwish", "1", "gr.ml.infra"));
  if (creator == nullptr) {
    throw std::runtime_error("the plugin library has no FusedSwish");
  }
  float const beta = 1;
  PluginField const fields[] = {{"inputs", "x", PluginFieldType::kCHAR, 2},
                                {"outputs", "output", PluginFieldType::kCHAR, 7},
                                {"beta", &beta, PluginFieldType::kFLOAT32, 1}};
  PluginFieldCollection const collection{3, fields};
  auto const plugin = made(creator->createPlugin("swish", &collection, TensorRTPhase::kBUILD), "plugin");
  auto const network =
      made(builder.createNetworkV2(1U << static_cast<uint32_t>(NetworkDefinitionCreationFlag::kSTRONGLY_TYPED)), "network");
  ITensor* const x = network->addInput("x", DataType::kFLOAT, Dims2{-1, kColumns});
  IPluginV3Layer* const layer = network->addPluginV3(&x, 1, nullptr, 0, *plugin);
  if (layer == nullptr) {
    throw std::runtime_error("TensorRT makes no plugin layer");
  }
  layer->getOutput(0)->setName("y");
  network->markOutput(*layer->getOutput(0));
  auto const config = made(builder.createBuilderConfig(), "configuration");
  IOptimizationProfile* const profile = builder.createOptimizationProfile();
  profile->setDimensions("x", OptProfileSelector::kMIN, Dims2{1, kColumns});
  profile->setDimensions("x", OptProfileSelector::kOPT, Dims2{8, kColumns});
  profile->setDimensions("x", OptProfileSelector::kMAX, Dims2{kMaxRows, kColumns});
  config->addOptimizationProfile(profile);
  return made(builder.buildSerializedNetwork(*network, *config), "engine");
}

// The largest difference from x * sigmoid(x).
double run(ICudaEngine& engine, Driver const& driver, int runs) {
  auto const context = made(engine.createExecutionContext(), "context");
  std::vector<float> x(kMaxRows * kColumns), y(x.size());
  for (size_t index = 0; index < x.size(); ++index) {
    x[index] = static_cast<float>(index) / 64 - 4;
  }
  size_t const bytes = x.size() * sizeof(float);
  CUdeviceptr input = 0, output = 0;
  CUstream stream = nullptr;
  check(driver.allocate(&input, bytes), "cuMemAlloc");
  check(driver.allocate(&output, bytes), "cuMemAlloc");
  check(driver.createStream(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
  check(driver.copy(input, reinterpret_cast<CUdeviceptr>(x.data()), bytes, stream), "cuMemcpyAsync");
  context->setInputShape("x", Dims2{kMaxRows, kColumns});
  context->setTensorAddress("x", reinterpret_cast<void*>(input));
  context->setTensorAddress("y", reinterpret_cast<void*>(output));
  for (int number = 0; number < runs; ++number) {
    if (!context->enqueueV3(stream)) {
      throw std::runtime_error("TensorRT cannot run the engine");
    }
  }
  check(driver.copy(reinterpret_cast<CUdeviceptr>(y.data()), output, bytes, stream), "cuMemcpyAsync");
  check(driver.synchronize(stream), "cuStreamSynchronize");
  double worst = 0;
  for (size_t index = 0; index < x.size(); ++index) {
    worst = std::fmax(worst, std::fabs(y[index] - x[index] / (1 + std::exp(-double(x[index])))));
  }
  return worst;
}

void program(char const* plugins, int runs) {
  void* const tensorrt = opened("libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR));
  Logger logger;
  auto const version = found<int32_t (*)()>(tensorrt, "getInferLibVersion")();
  auto const builder =
      made(static_cast<IBuilder*>(found<void* (*)(void*, int32_t)>(tensorrt, "createInferBuilder_INTERNAL")(&logger, version)),
           "builder");
  auto const runtime =
      made(static_cast<IRuntime*>(found<void* (*)(void*, int32_t)>(tensorrt, "createInferRuntime_INTERNAL")(&logger, version)),
           "runtime");
  IPluginRegistry* const registry = found<IPluginRegistry* (*)()>(tensorrt, "getPluginRegistry")();
  if (registry->loadLibrary(plugins) == nullptr) {
    throw std::runtime_error(std::string("TensorRT does not load ") + plugins);
  }
  Driver const driver(opened("libcuda.so.1"));
  CUcontext context = nullptr;
  check(driver.init(0), "cuInit");
  check(driver.retain(&context, 0), "cuDevicePrimaryCtxRetain");
  check(driver.setCurrent(context), "cuCtxSetCurrent");
  auto const plan = built(*builder, *registry);
  auto const engine = made(runtime->deserializeCudaEngine(plan->data(), plan->size()), "engine of the plan");
  double const worst = run(*engine, driver, runs);
  std::printf("%d runs of [%d, %d]: %s, at most %.0e off\n", runs, static_cast<int>(kMaxRows), static_cast<int>(kColumns),
              worst < 1e-6 ? "right" : "WRONG", worst);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s PLUGIN_LIBRARY [RUNS]\n", argv[0]);
    return 2;
  }
  try {
    program(argv[1], argc > 2 ? std::atoi(argv[2]) : 10);
  } catch (std::exception const& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
