// A double of ONNX Runtime's C interface, outside of Python: runs nodes that are written to its standard input by the kernels of
// a library, with threads of its own and tensors that are allocated to the byte, so that sanitizers see what kernels do.
//
// double LIBRARY PROVIDER < nodes > results. A node is lines, with the bytes of a tensor behind its line:
//   string NAME VALUE | int NAME VALUE | float NAME VALUE | ints NAME COUNT VALUES | floats NAME COUNT VALUES
//   input TYPE RANK SIZES BYTES
//   run OPERATOR OUTPUTS
// A result is `output TYPE RANK SIZES BYTES` and the bytes, for each output, or `refused TEXT`. Of the
// CUDAExecutionProvider a line `addresses INPUTS OUTPUTS WORKSPACE` follows, the workspace 0 where there was none; its memory is
// the host's.
#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "api.h"

namespace gr::api {

struct Status {
  std::string text;
};
struct TensorInfo {
  int32_t type{kUndefined};
  std::vector<int64_t> sizes;
  std::vector<std::string> symbols;
};
struct Value {
  TensorInfo info;
  void* data{nullptr};
  size_t bytes{0};
};
struct Attribute {
  std::string text;
  std::vector<int64_t> integers;
  std::vector<float> numbers;
};
struct KernelInfo {
  std::map<std::string, Attribute> attributes;
};
struct KernelContext {
  std::vector<Value> inputs, outputs;
  mutable void* workspace{nullptr};  // the one that was given last
  mutable int32_t held{0};           // allocators and pieces of memory that are not given back
};
struct ShapeContext {
  std::vector<TensorInfo> inputs, outputs;
  std::map<std::string, Attribute> const* attributes{nullptr};
};
struct Domain {
  std::vector<OperatorDescription const*> operators;
};
struct SessionOptions {
  Domain* domain{nullptr};
};
struct MemoryInfo {};
struct Allocator {
  KernelContext const* context{nullptr};
};

}  // namespace gr::api

namespace {

using namespace gr::api;

constexpr int32_t kThreads = 3;
constexpr uintptr_t kStream = 0x5eed;

Status* failed(std::string const& text) { return new Status{text}; }

size_t sizeOf(int32_t type) { return type == kInt64 ? 8 : type == kFloat || type == kInt32 ? 4 : type == kBool ? 1 : 2; }

Status* find(std::map<std::string, Attribute> const& all, char const* name, Attribute const*& found) {
  auto const place = all.find(name);
  if (place == all.end()) return failed(std::string("no attribute ") + name);
  found = &place->second;
  return nullptr;
}

template <typename T>
Status* copy(std::vector<T> const& from, T* to, size_t* size) {
  if (to != nullptr) std::copy(from.begin(), from.end(), to);
  *size = from.size();
  return nullptr;
}

template <int32_t place, typename Signature>
void put(void const** table, Function<place, Signature> const&, Signature* function) {
  table[place] = reinterpret_cast<void const*>(function);
}

// A table in which all that is not used here is null.
Table table(uint32_t version) {
  static void const* made[512];
  if (version != kVersion) return nullptr;
  void const** const t = made;
  put(t, createStatus, +[](int32_t, char const* text) { return failed(text); });
  put(t, statusMessage, +[](Status const* status) { return status->text.c_str(); });
  put(t, releaseStatus, +[](Status* status) { delete status; });
  put(t, createDomain, +[](char const*, Domain** domain) -> Status* { return *domain = new Domain, nullptr; });
  put(
      t, addOperator,
      +[](Domain* domain, OperatorDescription const* one) -> Status* { return domain->operators.push_back(one), nullptr; });
  put(t, addDomain, +[](SessionOptions* options, Domain* domain) -> Status* { return options->domain = domain, nullptr; });
  put(t, tensorData, +[](Value const* value, void** data) -> Status* { return *data = value->data, nullptr; });
  put(t, createTensorInfo, +[](TensorInfo** info) -> Status* { return *info = new TensorInfo, nullptr; });
  put(t, releaseTensorInfo, +[](TensorInfo* info) { delete info; });
  put(t, setElementType, +[](TensorInfo* info, int32_t type) -> Status* { return info->type = type, nullptr; });
  put(
      t, setSizes, +[](TensorInfo* info, int64_t const* sizes, size_t rank) -> Status* {
        return info->sizes.assign(sizes, sizes + rank), nullptr;
      });
  put(
      t, setSymbols, +[](TensorInfo* info, char const** symbols, size_t rank) -> Status* {
        return info->symbols.assign(symbols, symbols + rank), nullptr;
      });
  put(t, elementType, +[](TensorInfo const* info, int32_t* type) -> Status* { return *type = info->type, nullptr; });
  put(t, rank, +[](TensorInfo const* info, size_t* rank) -> Status* { return *rank = info->sizes.size(), nullptr; });
  put(
      t, sizes, +[](TensorInfo const* info, int64_t* to, size_t) -> Status* {
        return std::copy(info->sizes.begin(), info->sizes.end(), to), nullptr;
      });
  put(
      t, symbols, +[](TensorInfo const* info, char const** to, size_t count) -> Status* {
        for (size_t i = 0; i < count; ++i) to[i] = i < info->symbols.size() ? info->symbols[i].c_str() : "";
        return nullptr;
      });
  put(
      t, tensorInfo,
      +[](Value const* value, TensorInfo** info) -> Status* { return *info = new TensorInfo(value->info), nullptr; });
  put(
      t, attributeInt, +[](KernelInfo const* info, char const* name, int64_t* value) -> Status* {
        Attribute const* found = nullptr;
        if (Status* const status = find(info->attributes, name, found)) return status;
        return *value = found->integers.at(0), nullptr;
      });
  put(
      t, attributeFloat, +[](KernelInfo const* info, char const* name, float* value) -> Status* {
        Attribute const* found = nullptr;
        if (Status* const status = find(info->attributes, name, found)) return status;
        return *value = found->numbers.at(0), nullptr;
      });
  put(
      t, attributeString, +[](KernelInfo const* info, char const* name, char* to, size_t* size) -> Status* {
        Attribute const* found = nullptr;
        if (Status* const status = find(info->attributes, name, found)) return status;
        *size = found->text.size() + 1;
        if (to != nullptr) std::memcpy(to, found->text.c_str(), *size);
        return nullptr;
      });
  put(
      t, attributeInts, +[](KernelInfo const* info, char const* name, int64_t* to, size_t* size) -> Status* {
        Attribute const* found = nullptr;
        if (Status* const status = find(info->attributes, name, found)) return status;
        return copy(found->integers, to, size);
      });
  put(
      t, attributeFloats, +[](KernelInfo const* info, char const* name, float* to, size_t* size) -> Status* {
        Attribute const* found = nullptr;
        if (Status* const status = find(info->attributes, name, found)) return status;
        return copy(found->numbers, to, size);
      });
  put(
      t, inputCount,
      +[](KernelContext const* context, size_t* count) -> Status* { return *count = context->inputs.size(), nullptr; });
  put(
      t, outputCount,
      +[](KernelContext const* context, size_t* count) -> Status* { return *count = context->outputs.size(), nullptr; });
  put(
      t, input, +[](KernelContext const* context, size_t at, Value const** value) -> Status* {
        return *value = &context->inputs.at(at), nullptr;
      });
  put(
      t, output, +[](KernelContext* context, size_t at, int64_t const* sizes, size_t rank, Value** value) -> Status* {
        Value& made = context->outputs.at(at);
        made.info.sizes.assign(sizes, sizes + rank);
        made.bytes = sizeOf(made.info.type);
        for (int64_t size : made.info.sizes) made.bytes *= static_cast<size_t>(size);
        made.data = std::malloc(made.bytes);
        std::memset(made.data, 255, made.bytes);  // NaN where nothing is written
        return *value = &made, nullptr;
      });
  put(
      t, parallelFor, +[](KernelContext const*, void (*work)(void*, size_t), size_t count, size_t, void* data) -> Status* {
        std::atomic<size_t> next{0};
        std::vector<std::thread> threads;
        for (int32_t i = 0; i < kThreads; ++i) {
          threads.emplace_back([&] {
            for (size_t at = next++; at < count; at = next++) work(data, at);
          });
        }
        for (std::thread& thread : threads) thread.join();
        return nullptr;
      });
  put(
      t, inferredInputCount,
      +[](ShapeContext const* context, size_t* count) -> Status* { return *count = context->inputs.size(), nullptr; });
  put(
      t, inferredInput, +[](ShapeContext const* context, size_t at, TensorInfo** info) -> Status* {
        return *info = const_cast<TensorInfo*>(&context->inputs.at(at)), nullptr;
      });
  put(
      t, inferredAttribute, +[](ShapeContext const* context, char const* name, void const** attribute) -> Status* {
        Attribute const* found = nullptr;
        if (Status* const status = find(*context->attributes, name, found)) return status;
        return *attribute = found, nullptr;
      });
  put(
      t, readAttribute, +[](void const* attribute, int32_t type, void* to, size_t room, size_t* size) -> Status* {
        auto const& found = *static_cast<Attribute const*>(attribute);
        *size = type == kString ? found.text.size() : sizeof(int64_t);  // no zero at the end
        if (*size > room) return failed("no room");
        std::memcpy(to, type == kString ? static_cast<void const*>(found.text.data()) : found.integers.data(), *size);
        return nullptr;
      });
  put(
      t, setInferredOutput, +[](ShapeContext const* context, size_t at, TensorInfo const* info) -> Status* {
        return const_cast<ShapeContext*>(context)->outputs.at(at) = *info, nullptr;
      });
  put(
      t, stream,
      +[](KernelContext const*, void** stream) -> Status* { return *stream = reinterpret_cast<void*>(kStream), nullptr; });
  put(
      t, memoryInfo, +[](Value const*, MemoryInfo const** info) -> Status* {
        static MemoryInfo const device;
        return *info = &device, nullptr;
      });
  put(
      t, allocator, +[](KernelContext const* context, MemoryInfo const*, Allocator** allocator) -> Status* {
        ++context->held;
        return *allocator = new Allocator{context}, nullptr;
      });
  put(
      t, releaseAllocator, +[](Allocator* allocator) {
        --allocator->context->held;
        delete allocator;
      });
  put(
      t, streamMemory, +[](KernelContext const* context, MemoryInfo const*, size_t bytes, void** data) -> Status* {
        ++context->held;
        return *data = context->workspace = std::malloc(bytes), nullptr;
      });
  put(
      t, freeMemory, +[](Allocator* allocator, void* data) -> Status* {
        --allocator->context->held;
        return std::free(data), nullptr;
      });
  return made;
}

// Types and sizes as inferred, then the node itself; what refuses it becomes its text.
std::string ran(OperatorDescription const& description, KernelInfo const& info, KernelContext& context) {
  auto text = [](Status* status) {
    std::unique_ptr<Status> const owner(status);
    return owner == nullptr ? "" : owner->text;
  };
  ShapeContext shapes;
  shapes.attributes = &info.attributes;
  for (Value const& value : context.inputs) shapes.inputs.push_back(value.info);
  shapes.outputs.resize(context.outputs.size());
  if (std::string const refused = text(description.infer(&description, &shapes)); !refused.empty()) return refused;
  for (size_t i = 0; i < context.outputs.size(); ++i) context.outputs[i].info.type = shapes.outputs[i].type;
  void* kernel = nullptr;
  if (std::string const refused = text(description.create(&description, table(kVersion), &info, &kernel)); !refused.empty()) {
    return refused;
  }
  std::string refused = text(description.compute(kernel, &context));
  description.destroy(kernel);
  if (context.held != 0) return "memory was not given back";
  for (size_t i = 0; refused.empty() && i < context.outputs.size(); ++i) {
    if (shapes.outputs[i].sizes != context.outputs[i].info.sizes) refused = "another shape was inferred";
  }
  return refused;
}

}  // namespace

int main(int count, char** arguments) {
  void* const library = count == 3 ? dlopen(arguments[1], RTLD_NOW) : nullptr;
  if (library == nullptr) return std::cerr << (count == 3 ? dlerror() : "double LIBRARY PROVIDER") << '\n', 1;
  std::string const provider = arguments[2];
  auto const enter = reinterpret_cast<Status* (*)(SessionOptions*, Base const*)>(dlsym(library, "RegisterCustomOps"));
  SessionOptions options;
  Base const base{table, [] { return "a double"; }};
  if (Status* const status = enter(&options, &base)) return std::cerr << status->text << '\n', 1;

  KernelInfo info;
  KernelContext context;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string kind, name;
    words >> kind;
    if (kind == "input") {
      Value value;
      size_t rank = 0;
      words >> value.info.type >> rank;
      value.info.sizes.resize(rank);
      for (int64_t& size : value.info.sizes) words >> size;
      words >> value.bytes;
      value.data = std::malloc(value.bytes);
      std::cin.read(static_cast<char*>(value.data), static_cast<std::streamsize>(value.bytes));
      context.inputs.push_back(value);
    } else if (kind == "run") {
      size_t outputs = 0;
      words >> name >> outputs;
      context.outputs.resize(outputs);
      std::string refused = "no such operator";
      for (OperatorDescription const* each : options.domain->operators) {
        if (each->name(each) == name && each->provider(each) == provider) refused = ran(*each, info, context);
      }
      if (!refused.empty()) std::cout << "refused " << refused << '\n';
      for (Value const& value : context.outputs) {
        if (refused.empty()) {
          std::cout << "output " << value.info.type << ' ' << value.info.sizes.size();
          for (int64_t size : value.info.sizes) std::cout << ' ' << size;
          std::cout << ' ' << value.bytes << '\n';
          std::cout.write(static_cast<char const*>(value.data), static_cast<std::streamsize>(value.bytes));
        }
      }
      if (provider == "CUDAExecutionProvider" && refused.empty()) {
        std::cout << "addresses";
        for (auto const* values : {&context.inputs, &context.outputs}) {
          for (Value const& value : *values) std::cout << ' ' << reinterpret_cast<uintptr_t>(value.data);
        }
        std::cout << ' ' << reinterpret_cast<uintptr_t>(context.workspace) << '\n';
      }
      for (auto const* values : {&context.inputs, &context.outputs}) {
        for (Value const& value : *values) std::free(value.data);
      }
      context = {};
      info = {};
    } else {
      words >> name;
      Attribute& attribute = info.attributes[name];
      size_t items = 1;
      if (kind == "string") {
        words >> attribute.text;
      } else if (kind == "ints" || kind == "floats") {
        words >> items;
      }
      for (size_t i = 0; kind[0] == 'i' && i < items; ++i) words >> attribute.integers.emplace_back();
      for (size_t i = 0; kind[0] == 'f' && i < items; ++i) words >> attribute.numbers.emplace_back();
    }
  }
  delete options.domain;
}
