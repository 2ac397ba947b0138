#include "kernels.h"

#include <zlib.h>

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>
#include <utility>

#include "driver.h"
#include "log.h"
#include "refusal.h"

// What onnx_fuse.runtime.plugins.plugin_library generates.
extern "C" unsigned char const gr_kernel_blob[];
extern gr::KernelVariant const gr_kernel_variants[];
extern int32_t const gr_kernel_variant_count;
extern char const gr_kernel_digest[];

namespace gr {
namespace {

constexpr int kStaticSharedLimit = 48 * 1024;
// Of the driver's enumerations, as aot.py has the kernels: 16-bit elements, parts of rows of 128 bytes, swizzled by as many.
constexpr int kMapUint16 = 1;
constexpr int kMapSwizzle128 = 3;
constexpr int kMapPromote128 = 2;  // what L2 fetches at once
constexpr int64_t kMapColumns = 64;

struct Loaded {
  CUfunction function;
  KernelImage const* image;
};

std::vector<char> unpack(KernelImage const& image) {
  std::vector<char> data(image.size + 1);  // PTX ends with a zero
  uLongf size = image.size;
  int const status = uncompress(reinterpret_cast<Bytef*>(data.data()), &size, gr_kernel_blob + image.offset, image.packedSize);
  if (status != Z_OK || size != image.size) {
    refuse("the kernel ", image.symbol, " is damaged");
  }
  return data;
}

int attribute(CUdevice device, CUdevice_attribute name) {
  int value = 0;
  driver().check(driver().deviceGetAttribute(&value, name, device), "cuDeviceGetAttribute");
  return value;
}

bool runsOn(KernelImage const& image, int architecture) {
  if (image.ptx) {
    return image.architecture <= architecture;
  }
  if (image.exact) {
    return image.architecture == architecture;
  }
  return image.architecture / 10 == architecture / 10 && image.architecture <= architecture;
}

// Machine code before PTX, of each the newest.
bool better(KernelImage const& image, KernelImage const* than) {
  return than == nullptr || std::pair(!image.ptx, image.architecture) > std::pair(!than->ptx, than->architecture);
}

CUfunction loadImage(KernelImage const& image) {
  std::vector<char> const data = unpack(image);
  CUmodule module = nullptr;
  driver().check(driver().moduleLoadDataEx(&module, data.data(), 0, nullptr, nullptr), "cuModuleLoadDataEx");
  CUfunction function = nullptr;
  driver().check(driver().moduleGetFunction(&function, module, image.symbol), "cuModuleGetFunction");
  if (image.sharedBytes > kStaticSharedLimit) {
    driver().check(driver().funcSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, image.sharedBytes),
                   "cuFuncSetAttribute");
  }
  return function;
}

int architectureOf(CUdevice device) {
  return 10 * attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) +
         attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
}

// Of the current device.
int architectureHere() {
  CUdevice device{};
  driver().check(driver().ctxGetDevice(&device), "cuCtxGetDevice");
  return architectureOf(device);
}

Loaded load(KernelVariant const& variant) {
  int const architecture = architectureHere();
  std::vector<KernelImage const*> refused;
  while (true) {
    KernelImage const* best = nullptr;
    for (int32_t index = 0; index < variant.imageCount; ++index) {
      KernelImage const& image = variant.images[index];
      bool const tried = std::find(refused.begin(), refused.end(), &image) != refused.end();
      if (!tried && runsOn(image, architecture) && better(image, best)) {
        best = &image;
      }
    }
    if (best == nullptr) {
      refuse("the kernel ", variant.name, " was not built for sm_", architecture);
    }
    try {
      return {loadImage(*best), best};
    } catch (Refusal const& refusal) {
      // A driver older than the compiler refuses its machine code, and may take the PTX.
      log(Severity::kWARNING, std::string(variant.name) + (best->ptx ? " as PTX of sm_" : " for sm_") +
                                  std::to_string(best->architecture) + ": " + refusal.what());
      refused.push_back(best);
    }
  }
}

// A number of the current context that no other context of this process has, before or after: its address is given to another
// context once it is destroyed. To be called by one thread at a time.
unsigned long long contextId() {
  CUcontext context = nullptr;
  driver().check(driver().ctxGetCurrent(&context), "cuCtxGetCurrent");
  if (context == nullptr) {
    refuse("no CUDA context is current");
  }
  if (driver().ctxGetId != nullptr) {
    unsigned long long id = 0;
    driver().check(driver().ctxGetId(context, &id), "cuCtxGetId");
    return id;
  }
  // A piece of the context's memory stands for it: it goes with the context, and the driver gives no two pieces the same ID,
  // also where they have the same address one after the other.
  struct Piece {
    CUdeviceptr address{};
    unsigned long long id{};
  };
  static std::map<CUcontext, Piece> pieces;
  Piece& piece = pieces[context];
  unsigned long long found = 0;
  CUresult const there = piece.address == 0
                             ? CUDA_ERROR_INVALID_VALUE
                             : driver().pointerGetAttribute(&found, CU_POINTER_ATTRIBUTE_BUFFER_ID, piece.address);
  if (there != CUDA_SUCCESS || found != piece.id) {
    piece = {};
    driver().check(driver().memAlloc(&piece.address, 1), "cuMemAlloc");
    driver().check(driver().pointerGetAttribute(&piece.id, CU_POINTER_ATTRIBUTE_BUFFER_ID, piece.address),
                   "cuPointerGetAttribute");
  }
  return piece.id;
}

// The only state that plugins share: what was loaded, by context.
Loaded const& loaded(KernelVariant const& variant) {
  static std::mutex mutex;
  static std::map<std::pair<unsigned long long, KernelVariant const*>, Loaded> all;
  std::lock_guard<std::mutex> const lock(mutex);
  auto const key = std::pair(contextId(), &variant);
  auto found = all.find(key);
  if (found == all.end()) {
    found = all.emplace(key, load(variant)).first;
  }
  return found->second;
}

}  // namespace

int64_t KernelVariant::constant(std::string_view wanted) const {
  for (int32_t index = 0; index < constantCount; ++index) {
    if (wanted == constants[index].name) {
      return constants[index].value;
    }
  }
  refuse("the kernel ", name, " has no constant ", wanted);
}

KernelVariant const* lookUp(std::string const& name) {
  KernelVariant const* const end = gr_kernel_variants + gr_kernel_variant_count;
  KernelVariant const* const found =
      std::find_if(gr_kernel_variants, end, [&](KernelVariant const& variant) { return name == variant.name; });
  return found == end ? nullptr : found;
}

KernelVariant const& findKernel(std::string const& name) { return findKernel(std::vector<std::string>{name}); }

KernelVariant const& findKernel(std::vector<std::string> const& names) {
  std::vector<KernelVariant const*> compiled;
  for (std::string const& name : names) {
    if (KernelVariant const* const found = lookUp(name); found != nullptr) {
      compiled.push_back(found);
    }
  }
  if (compiled.empty()) {
    refuse("the library has no kernel ", names.back());
  }
  if (compiled.size() == 1) {
    return *compiled.front();
  }
  int const architecture = architectureHere();
  for (bool const ptx : {false, true}) {
    for (KernelVariant const* const variant : compiled) {
      if (std::any_of(variant->images, variant->images + variant->imageCount,
                      [&](KernelImage const& image) { return image.ptx == ptx && runsOn(image, architecture); })) {
        return *variant;
      }
    }
  }
  return *compiled.back();
}

Arguments::Value& Arguments::add(char kind) {
  mKinds += kind;
  return mValues.emplace_back();
}

Arguments& Arguments::pointer(void const* value) {
  add('p').pointer = value;
  return *this;
}

Arguments& Arguments::integer(int64_t value) {
  add('n').integer = value;
  return *this;
}

Arguments& Arguments::float32(float value) {
  add('f').float32 = value;
  return *this;
}

Arguments& Arguments::matrix(void const* data, int64_t rows, int64_t columns, int64_t blockRows) {
  mMatrices.push_back({mValues.size(), data, rows, columns, blockRows});
  add('t');
  return integer(rows).integer(columns).integer(columns).integer(1);
}

void Arguments::makeMaps() {
  for (Matrix const& matrix : mMatrices) {
    if (driver().tensorMapEncodeTiled == nullptr) {
      refuse("the CUDA driver has no cuTensorMapEncodeTiled: it is older than CUDA 12");
    }
    auto const size = [](int64_t value) { return static_cast<cuuint64_t>(value); };
    cuuint64_t const sizes[] = {size(matrix.columns), size(matrix.rows)};  // the innermost first
    cuuint64_t const rowBytes = size(matrix.columns) * sizeof(uint16_t);
    cuuint32_t const box[] = {static_cast<cuuint32_t>(kMapColumns), static_cast<cuuint32_t>(matrix.blockRows)};
    cuuint32_t const steps[] = {1, 1};
    driver().check(driver().tensorMapEncodeTiled(&mValues[matrix.index].map, kMapUint16, 2, const_cast<void*>(matrix.data),
                                                 sizes, &rowBytes, box, steps, 0, kMapSwizzle128, kMapPromote128, 0),
                   "cuTensorMapEncodeTiled");
  }
}

void Arguments::check(KernelVariant const& variant) const {
  std::string wanted = variant.signature;
  std::replace_if(wanted.begin(), wanted.end(), [](char letter) { return letter == 'i' || letter == 'l'; }, 'n');
  if (mKinds != wanted) {
    refuse("the kernel ", variant.name, " takes (", wanted, "), not (", mKinds, ")");
  }
  for (size_t index = 0; index < mKinds.size(); ++index) {
    int64_t const value = mValues[index].integer;
    bool const fits = std::numeric_limits<int32_t>::min() <= value && value <= std::numeric_limits<int32_t>::max();
    if (variant.signature[index] == 'i' && !fits) {
      refuse("a size of ", value, " does not fit into 32 bits");
    }
  }
}

std::vector<int32_t> kernelArchitectures() {
  std::vector<int32_t> found;
  KernelVariant const& any = gr_kernel_variants[0];  // all are compiled for the same
  for (int32_t index = 0; gr_kernel_variant_count > 0 && index < any.imageCount; ++index) {
    found.push_back(any.images[index].ptx ? -any.images[index].architecture : any.images[index].architecture);
  }
  return found;
}

void checkDevices() {
  driver().check(driver().init(0), "cuInit");
  int count = 0;
  driver().check(driver().deviceGetCount(&count), "cuDeviceGetCount");
  if (count == 0) {
    refuse("there is no GPU");
  }
  for (int number = 0; number < count; ++number) {
    CUdevice device{};
    driver().check(driver().deviceGet(&device, number), "cuDeviceGet");
    int const architecture = architectureOf(device);
    KernelVariant const& any = gr_kernel_variants[0];
    if (gr_kernel_variant_count == 0 || std::none_of(any.images, any.images + any.imageCount,
                                                     [&](KernelImage const& image) { return runsOn(image, architecture); })) {
      refuse("no kernels were built for sm_", architecture, ", GPU ", number);
    }
  }
}

char const* kernelDigest() { return gr_kernel_digest; }

int64_t multiprocessors() {
  CUdevice device{};
  driver().check(driver().ctxGetDevice(&device), "cuCtxGetDevice");
  return attribute(device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
}

void prepareKernel(KernelVariant const& variant) { loaded(variant); }

void checkLaunch(KernelVariant const& variant, Grid grid, Arguments const& arguments) {
  arguments.check(variant);
  if (grid.x > std::numeric_limits<int32_t>::max() || grid.y > 65535 || grid.z > 65535) {
    refuse("a grid of ", grid.x, " x ", grid.y, " x ", grid.z, " blocks is too large for ", variant.name);
  }
}

void launchKernel(KernelVariant const& variant, Grid grid, Arguments& arguments, CUstream stream) {
  Loaded const& kernel = loaded(variant);
  std::vector<void*> parameters;
  for (auto& value : arguments.mValues) {
    parameters.push_back(&value);  // of an integer a kernel reads the lower half if it takes 32 bits
  }
  // Triton's kernels end with two hidden pointers, to scratch memory that these kernels do not use.
  void* scratch = nullptr;
  parameters.insert(parameters.end(), 2, &scratch);
  KernelImage const& image = *kernel.image;
  driver().check(driver().launchKernel(kernel.function, static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                                       static_cast<unsigned>(grid.z), static_cast<unsigned>(image.threads), 1, 1,
                                       static_cast<unsigned>(image.sharedBytes), stream, parameters.data(), nullptr),
                 "cuLaunchKernel");
}

}  // namespace gr
