// A CUDA driver that runs no kernel and writes what it was asked to launch, one JSON object a line, to $FAKE_CUDA_LOG.
// Built as libcuda.so.1, it lets a machine without a GPU see what plugins enqueue. $FAKE_CUDA_SM is the capability it claims;
// with $FAKE_CUDA_REFUSES_CUBINS it takes PTX only, as a driver older than the compiler does. $FAKE_CUDA_SIGNATURES is a file
// of lines "kernel letters" with a letter for each argument: p(ointer), i(nt32), l(ong, int64), f(loat32), t(ensor map), which is
// written as the object that `TensorMap` describes.
// With $FAKE_CUDA_STREAMS a line says on which stream, too.
// Memory of the device is memory of the host, and streams do at once what they are told; a captured stream keeps it for the
// graph. With $FAKE_CUDA_MEMORY, so many bytes can be allocated. $FAKE_CUDA_MULTIPROCESSORS is how many it claims, else 132.
// Between fake_cuda_enqueuing(1) and (0), which the harness calls around `enqueue`, a thread is refused what may wait for the
// device. fake_cuda_replace_context() destroys the context, with all that was loaded, and makes another at its address.
#include <cuda.h>
#include <dlfcn.h>

#include <chrono>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace {

using Work = std::vector<std::function<void()>>;

std::mutex mutex;
thread_local bool enqueuing = false;
unsigned long long context = 1;

struct Function {
  std::string name;
  unsigned long long context;
};

struct Piece {
  size_t size;
  unsigned long long id;
};

std::map<std::pair<unsigned long long, std::string>, Function> functions;  // stay where they are when the context is gone
std::map<CUstream, Work> captured;                                         // of the streams that are being captured
std::map<CUdeviceptr, Piece> allocated;
size_t used = 0;

// Writes a line of JSON to the log.
void record(std::string const& line) {
  char const* const path = std::getenv("FAKE_CUDA_LOG");
  if (std::FILE* const file = path == nullptr ? nullptr : std::fopen(path, "a"); file != nullptr) {
    std::fputs(line.c_str(), file);
    std::fclose(file);
  }
}

// Whether a thread that enqueues asks for what may wait for the device. A plugin that is meant to wait is let through by
// $FAKE_CUDA_MAY_WAIT.
bool mayWait(char const* function) {
  bool const refused = enqueuing && std::getenv("FAKE_CUDA_MAY_WAIT") == nullptr;
  if (refused) {
    record(std::string("{\"waits\": \"") + function + "\"}\n");
  }
  return refused;
}

// Does it now, or when the graph of the stream is launched.
void run(CUstream stream, std::function<void()> work) {
  auto const found = captured.find(stream);
  if (found == captured.end()) {
    work();
  } else {
    found->second.push_back(std::move(work));
  }
}

double now() { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

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

// What cuTensorMapEncodeTiled leaves in the 128 bytes of a map.
struct TensorMap {
  static constexpr uint64_t kMark = 0x70616d20726f736e;
  uint64_t mark;
  uint64_t address;
  uint64_t rows;
  uint64_t columns;
  uint64_t rowBytes;
  uint32_t boxRows;
  uint32_t boxColumns;
};
static_assert(sizeof(TensorMap) <= 128);

std::string written(TensorMap const& map) {
  std::string text = "null";
  if (map.mark == TensorMap::kMark) {
    text = "{";
    std::pair<char const*, uint64_t> const all[] = {{"address", map.address},  {"rows", map.rows},
                                                    {"columns", map.columns},  {"row_bytes", map.rowBytes},
                                                    {"box_rows", map.boxRows}, {"box_columns", map.boxColumns}};
    for (auto const& [name, value] : all) {
      text += (text.size() == 1 ? "\"" : ", \"") + std::string(name) + "\": " + std::to_string(value);
    }
    text += "}";
  }
  return text;
}

std::string written(char letter, void const* place) {
  char text[32];
  switch (letter) {
    case 'i':
      std::snprintf(text, sizeof(text), "%" PRId32, read<int32_t>(place));
      break;
    case 'f': {
      float const value = read<float>(place);  // JSON as Python reads it has words for what is not finite
      if (!std::isfinite(value)) {
        return std::isnan(value) ? "NaN" : value > 0 ? "Infinity" : "-Infinity";
      }
      std::snprintf(text, sizeof(text), "%.9g", static_cast<double>(value));
      break;
    }
    case 't':
      return written(read<TensorMap>(place));
    default:
      std::snprintf(text, sizeof(text), "%" PRId64, read<int64_t>(place));
  }
  return text;
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

CUresult cuCtxGetId(CUcontext, unsigned long long* id) {
  std::lock_guard<std::mutex> const lock(mutex);
  *id = context;
  return CUDA_SUCCESS;
}

__attribute__((visibility("default"))) void fake_cuda_enqueuing(int does) { enqueuing = does != 0; }

__attribute__((visibility("default"))) void fake_cuda_replace_context() {
  std::lock_guard<std::mutex> const lock(mutex);
  ++context;
  for (auto const& [address, piece] : allocated) {
    std::free(reinterpret_cast<void*>(address));
  }
  allocated.clear();
  used = 0;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  if (attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT) {
    char const* const count = std::getenv("FAKE_CUDA_MULTIPROCESSORS");
    *value = count == nullptr ? 132 : std::atoi(count);
    return CUDA_SUCCESS;
  }
  char const* const claimed = std::getenv("FAKE_CUDA_SM");
  int const capability = claimed == nullptr ? 80 : std::atoi(claimed);
  *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? capability / 10 : capability % 10;
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadDataEx(CUmodule* module, void const* image, unsigned, CUjit_option*, void**) {
  if (mayWait("cuModuleLoadDataEx")) {
    return CUDA_ERROR_NOT_PERMITTED;
  }
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
  Function& found = functions[{context, name}];
  found = {name, context};
  *function = reinterpret_cast<CUfunction>(&found);
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }

CUresult cuLaunchKernel(CUfunction function, unsigned gridX, unsigned gridY, unsigned gridZ, unsigned blockX, unsigned,
                        unsigned, unsigned shared, CUstream stream, void** parameters, void**) {
  std::lock_guard<std::mutex> const lock(mutex);
  Function const& called = *reinterpret_cast<Function const*>(function);
  if (called.context != context) {
    return CUDA_ERROR_INVALID_HANDLE;
  }
  std::string const& name = called.name;
  std::string line = "{\"kernel\": \"" + name + "\", \"grid\": [" + std::to_string(gridX) + ", " + std::to_string(gridY) +
                     ", " + std::to_string(gridZ) + "], \"threads\": " + std::to_string(blockX) +
                     ", \"shared\": " + std::to_string(shared) + ", \"arguments\": [";
  std::string const letters = signatureOf(name) + "pp";  // the two hidden ones are pointers
  for (size_t index = 0; index < letters.size(); ++index) {
    line += (index == 0 ? "" : ", ") + written(letters[index], parameters[index]);
  }
  line += "]";
  if (std::getenv("FAKE_CUDA_STREAMS") != nullptr) {
    line += ", \"stream\": " + std::to_string(reinterpret_cast<uintptr_t>(stream));
  }
  run(stream, [line = line + "}\n"] { record(line); });
  return CUDA_SUCCESS;
}

// Of maps as plugins make them: matrices of 16-bit elements, in boxes of at most 256 rows and at most 128 bytes of each, swizzled by
// as many. It refuses what a GPU's driver would refuse, and memory of the device that a piece of it does not hold.
CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                cuuint64_t const* sizes, cuuint64_t const* strides, cuuint32_t const* box,
                                cuuint32_t const* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  if (type != CU_TENSOR_MAP_DATA_TYPE_UINT16 || rank != 2 || interleave != CU_TENSOR_MAP_INTERLEAVE_NONE ||
      swizzle != CU_TENSOR_MAP_SWIZZLE_128B || fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  auto const isSize = [](cuuint64_t size) { return size >= 1 && size <= cuuint64_t{1} << 32; };
  auto const isBox = [](cuuint32_t size) { return size >= 1 && size <= 256; };
  cuuint64_t const first = reinterpret_cast<cuuint64_t>(address);
  bool const placed = first != 0 && first % 16 == 0 && strides[0] % 16 == 0 && strides[0] < cuuint64_t{1} << 40;
  bool const boxed =
      isBox(box[0]) && isBox(box[1]) && box[0] * 2 <= 128 && box[0] * 2 % 16 == 0 && steps[0] == 1 && steps[1] == 1;
  if (!placed || !boxed || !isSize(sizes[0]) || !isSize(sizes[1]) || strides[0] < sizes[0] * 2) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  std::lock_guard<std::mutex> const lock(mutex);
  auto const after = allocated.upper_bound(first);
  if (after != allocated.begin()) {
    auto const& [start, piece] = *std::prev(after);
    cuuint64_t const end = first + (sizes[1] - 1) * strides[0] + sizes[0] * 2;
    if (first < start + piece.size && end > start + piece.size) {
      return CUDA_ERROR_INVALID_VALUE;
    }
  }
  TensorMap const made{TensorMap::kMark, first, sizes[1], sizes[0], strides[0], box[1], box[0]};
  std::memcpy(map, &made, sizeof(made));
  return CUDA_SUCCESS;
}

// --- what an engine needs besides: a device, memory, streams, events and graphs

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }

// cuda-python asks here for every function of the driver; those that are not in this file it does without.
CUresult cuGetProcAddress(char const* name, void** function, int, cuuint64_t, CUdriverProcAddressQueryResult* found) {
  void* const self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  for (char const* const version : {"_v3", "_v2", ""}) {
    if ((*function = dlsym(self, (std::string(name) + version).c_str())) != nullptr) {
      break;
    }
  }
  if (found != nullptr) {
    *found = *function == nullptr ? CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND : CU_GET_PROC_ADDRESS_SUCCESS;
  }
  return *function == nullptr ? CUDA_ERROR_NOT_FOUND : CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
  *count = 1;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int number) {
  *device = number;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int length, CUdevice) {
  std::snprintf(name, static_cast<size_t>(length), "a GPU that is none");
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return cuCtxGetCurrent(context); }

CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }

CUresult cuMemAlloc(CUdeviceptr* address, size_t size) {
  if (mayWait("cuMemAlloc")) {
    return CUDA_ERROR_NOT_PERMITTED;
  }
  std::lock_guard<std::mutex> const lock(mutex);
  char const* const limit = std::getenv("FAKE_CUDA_MEMORY");
  if (limit != nullptr && used + size > std::strtoull(limit, nullptr, 10)) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  static unsigned long long last = 0;
  *address = reinterpret_cast<CUdeviceptr>(std::malloc(size));
  allocated[*address] = {size, ++last};
  used += size;
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr address) {
  std::lock_guard<std::mutex> const lock(mutex);
  auto const found = allocated.find(address);
  if (found == allocated.end() || attribute != CU_POINTER_ATTRIBUTE_BUFFER_ID) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *static_cast<unsigned long long*>(value) = found->second.id;
  return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr address) {
  if (mayWait("cuMemFree")) {
    return CUDA_ERROR_NOT_PERMITTED;
  }
  std::lock_guard<std::mutex> const lock(mutex);
  auto const found = allocated.find(address);
  if (found == allocated.end()) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  used -= found->second.size;
  allocated.erase(found);
  std::free(reinterpret_cast<void*>(address));
  return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void** address, size_t size, unsigned) {
  if (mayWait("cuMemHostAlloc")) {
    return CUDA_ERROR_NOT_PERMITTED;
  }
  *address = std::malloc(size);
  return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void* address) {
  if (mayWait("cuMemFreeHost")) {
    return CUDA_ERROR_NOT_PERMITTED;
  }
  std::free(address);
  return CUDA_SUCCESS;
}

CUresult cuMemGetInfo(size_t* left, size_t* total) {
  std::lock_guard<std::mutex> const lock(mutex);
  *total = size_t{1} << 40;
  *left = *total - used;
  return CUDA_SUCCESS;
}

CUresult cuMemcpyAsync(CUdeviceptr target, CUdeviceptr source, size_t size, CUstream stream) {
  std::lock_guard<std::mutex> const lock(mutex);
  run(stream, [=] { std::memmove(reinterpret_cast<void*>(target), reinterpret_cast<void const*>(source), size); });
  return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream* stream, unsigned) {
  *stream = reinterpret_cast<CUstream>(new char);
  return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream stream) {
  delete reinterpret_cast<char*>(stream);
  return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream) {
  if (mayWait("cuStreamSynchronize")) {
    return CUDA_ERROR_NOT_PERMITTED;
  }
  std::lock_guard<std::mutex> const lock(mutex);
  return captured.count(stream) != 0 ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned) { return CUDA_SUCCESS; }

CUresult cuEventCreate(CUevent* event, unsigned) {
  *event = reinterpret_cast<CUevent>(new double(0));
  return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream) {
  *reinterpret_cast<double*>(event) = now();
  return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  *milliseconds = static_cast<float>(*reinterpret_cast<double*>(end) - *reinterpret_cast<double*>(start));
  return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) {
  delete reinterpret_cast<double*>(event);
  return CUDA_SUCCESS;
}

CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode) {
  std::lock_guard<std::mutex> const lock(mutex);
  captured[stream].clear();
  return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  std::lock_guard<std::mutex> const lock(mutex);
  *graph = reinterpret_cast<CUgraph>(new Work(std::move(captured[stream])));
  captured.erase(stream);
  return CUDA_SUCCESS;
}

CUresult cuGraphInstantiate(CUgraphExec* exec, CUgraph graph, unsigned long long) {
  *exec = reinterpret_cast<CUgraphExec>(new Work(*reinterpret_cast<Work*>(graph)));
  return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream) {
  std::lock_guard<std::mutex> const lock(mutex);
  for (auto const& work : *reinterpret_cast<Work*>(exec)) {
    work();
  }
  return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph) {
  delete reinterpret_cast<Work*>(graph);
  return CUDA_SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec exec) {
  delete reinterpret_cast<Work*>(exec);
  return CUDA_SUCCESS;
}

}  // extern "C"
