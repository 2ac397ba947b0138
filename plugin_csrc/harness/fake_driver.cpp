// A CUDA driver that runs nothing and writes what it was asked to launch, one JSON object a line, to $FAKE_CUDA_LOG.
// Built as libcuda.so.1, it lets a machine without a GPU see what plugins enqueue. $FAKE_CUDA_SM is the capability it claims;
// with $FAKE_CUDA_REFUSES_CUBINS it takes PTX only, as a driver older than the compiler does. $FAKE_CUDA_SIGNATURES is a file
// of lines "kernel letters" with a letter for each argument: p(ointer), i(nt32), l(ong, int64), f(loat32).
#include <cuda.h>

#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <string>

namespace {

std::mutex mutex;
std::map<std::string, int> functions;  // name -> a place in memory that stands for it
std::map<void const*, std::string> names;

std::string signatureOf(std::string const& kernel) {
  char const* const path = std::getenv("FAKE_CUDA_SIGNATURES");
  std::ifstream file(path == nullptr ? "" : path);
  for (std::string name, letters; file >> name >> letters;) {
    if (name == kernel) {
      return letters;
    }
  }
  return "";
}

template <typename T>
T read(void const* place) {
  T value{};
  std::memcpy(&value, place, sizeof(T));
  return value;
}

void write(std::FILE* file, char letter, void const* place) {
  switch (letter) {
    case 'i':
      std::fprintf(file, "%" PRId32, read<int32_t>(place));
      break;
    case 'f': {
      float const value = read<float>(place);  // JSON as Python reads it has words for what is not finite
      if (std::isfinite(value)) {
        std::fprintf(file, "%.9g", static_cast<double>(value));
      } else {
        std::fputs(std::isnan(value) ? "NaN" : value > 0 ? "Infinity" : "-Infinity", file);
      }
      break;
    }
    default:
      std::fprintf(file, "%" PRId64, read<int64_t>(place));
  }
}

}  // namespace

extern "C" {

CUresult cuGetErrorString(CUresult, char const** text) {
  *text = "the fake driver refuses";
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  static int something = 0;
  *context = reinterpret_cast<CUcontext>(&something);
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device) {
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  if (attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) {
    *value = 132;
    return CUDA_SUCCESS;
  }
  char const* const claimed = std::getenv("FAKE_CUDA_SM");
  int const capability = claimed == nullptr ? 80 : std::atoi(claimed);
  *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? capability / 10 : capability % 10;
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadDataEx(CUmodule* module, void const* image, unsigned, CUjit_option*, void**) {
  bool const cubin = std::memcmp(image, "\177ELF", 4) == 0;
  if (cubin && std::getenv("FAKE_CUDA_REFUSES_CUBINS") != nullptr) {
    return CUDA_ERROR_NO_BINARY_FOR_GPU;
  }
  static int kinds[2];
  *module = reinterpret_cast<CUmodule>(&kinds[cubin ? 0 : 1]);
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule, char const* name) {
  std::lock_guard<std::mutex> const lock(mutex);
  int& place = functions[name];
  names[&place] = name;
  *function = reinterpret_cast<CUfunction>(&place);
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }

CUresult cuLaunchKernel(CUfunction function, unsigned gridX, unsigned gridY, unsigned gridZ, unsigned blockX, unsigned,
                        unsigned, unsigned shared, CUstream, void** parameters, void**) {
  std::lock_guard<std::mutex> const lock(mutex);
  char const* const path = std::getenv("FAKE_CUDA_LOG");
  std::FILE* const file = path == nullptr ? nullptr : std::fopen(path, "a");
  if (file != nullptr) {
    std::string const& name = names[function];
    std::fprintf(file, "{\"kernel\": \"%s\", \"grid\": [%u, %u, %u], \"threads\": %u, \"shared\": %u, \"arguments\": [",
                 name.c_str(), gridX, gridY, gridZ, blockX, shared);
    std::string const letters = signatureOf(name) + "pp";  // the two hidden ones are pointers
    for (size_t index = 0; index < letters.size(); ++index) {
      std::fprintf(file, "%s", index == 0 ? "" : ", ");
      write(file, letters[index], parameters[index]);
    }
    std::fprintf(file, "]}\n");
    std::fclose(file);
  }
  return CUDA_SUCCESS;
}

}  // extern "C"
