// What this library uses of ONNX Runtime's C interface, written from its public documentation.
//
// ONNX Runtime hands out a table of functions that only ever grows at its end, and so does the description of an operator that
// a library fills in. So a function has the same place in every version. These places are those of version 18, that is ONNX
// Runtime 1.18 and newer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gr::api {

constexpr uint32_t kVersion = 18;

struct Status;  // null where all went well
struct SessionOptions;
struct Domain;
struct KernelInfo;
struct KernelContext;
struct ShapeContext;
struct TensorInfo;  // element type and sizes of a tensor
struct Value;
struct MemoryInfo;  // where memory is
struct Allocator;
using Table = void const* const*;

struct Base {
  Table (*table)(uint32_t version);  // null where this ONNX Runtime is older than `version`
  char const* (*runtimeVersion)();
};

enum ElementType : int32_t { kUndefined = 0, kFloat = 1, kInt32 = 6, kInt64 = 7, kBool = 9, kHalf = 10, kBfloat = 16 };
enum Arity : int32_t { kRequired = 0, kOptional = 1, kVariadic = 2 };
enum Error : int32_t { kFail = 1, kInvalidArgument = 2 };
enum AttributeType : int32_t { kInt = 1, kString = 5 };

// A place in the table, with the type of the function there.
template <int32_t place, typename Signature>
struct Function;
template <int32_t place, typename Result, typename... Arguments>
struct Function<place, Result(Arguments...)> {
  Result operator()(Table table, Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(const_cast<void*>(table[place]))(arguments...);
  }
};

constexpr Function<0, Status*(int32_t, char const*)> createStatus;
constexpr Function<2, char const*(Status const*)> statusMessage;
constexpr Function<26, Status*(char const*, Domain**)> createDomain;
constexpr Function<27, Status*(Domain*, struct OperatorDescription const*)> addOperator;
constexpr Function<28, Status*(SessionOptions*, Domain*)> addDomain;
constexpr Function<51, Status*(Value const*, void**)> tensorData;
constexpr Function<57, Status*(TensorInfo**)> createTensorInfo;
constexpr Function<58, Status*(TensorInfo*, int32_t)> setElementType;
constexpr Function<59, Status*(TensorInfo*, int64_t const*, size_t)> setSizes;
constexpr Function<60, Status*(TensorInfo const*, int32_t*)> elementType;
constexpr Function<61, Status*(TensorInfo const*, size_t*)> rank;
constexpr Function<62, Status*(TensorInfo const*, int64_t*, size_t)> sizes;
constexpr Function<63, Status*(TensorInfo const*, char const**, size_t)> symbols;
constexpr Function<65, Status*(Value const*, TensorInfo**)> tensorInfo;
constexpr Function<76, Status*(Allocator*, void*)> freeMemory;
constexpr Function<85, Status*(KernelInfo const*, char const*, float*)> attributeFloat;
constexpr Function<86, Status*(KernelInfo const*, char const*, int64_t*)> attributeInt;
constexpr Function<87, Status*(KernelInfo const*, char const*, char*, size_t*)> attributeString;
constexpr Function<88, Status*(KernelContext const*, size_t*)> inputCount;
constexpr Function<89, Status*(KernelContext const*, size_t*)> outputCount;
constexpr Function<90, Status*(KernelContext const*, size_t, Value const**)> input;
constexpr Function<91, Status*(KernelContext*, size_t, int64_t const*, size_t, Value**)> output;
constexpr Function<93, void(Status*)> releaseStatus;
constexpr Function<99, void(TensorInfo*)> releaseTensorInfo;
constexpr Function<132, void(Allocator*)> releaseAllocator;
constexpr Function<162, Status*(KernelInfo const*, char const*, float*, size_t*)> attributeFloats;
constexpr Function<163, Status*(KernelInfo const*, char const*, int64_t*, size_t*)> attributeInts;
constexpr Function<193, Status*(KernelContext const*, void**)> stream;
constexpr Function<194, Status*(Value const*, MemoryInfo const**)> memoryInfo;
constexpr Function<253, Status*(KernelContext const*, MemoryInfo const*, Allocator**)> allocator;
constexpr Function<267, Status*(ShapeContext const*, size_t*)> inferredInputCount;
constexpr Function<268, Status*(ShapeContext const*, size_t, TensorInfo**)> inferredInput;  // stays the context's
constexpr Function<269, Status*(ShapeContext const*, char const*, void const**)> inferredAttribute;
constexpr Function<270, Status*(ShapeContext const*, size_t, TensorInfo const*)> setInferredOutput;
constexpr Function<271, Status*(TensorInfo*, char const**, size_t)> setSymbols;
constexpr Function<272, Status*(void const*, int32_t, void*, size_t, size_t*)> readAttribute;
constexpr Function<274, Status*(KernelContext const*, void (*)(void*, size_t), size_t, size_t, void*)> parallelFor;
constexpr Function<277, Status*(KernelContext const*, MemoryInfo const*, size_t, void**)> streamMemory;

// What a library fills in for one operator. The functions without a status are those of older versions, which ONNX Runtime
// does not call where the others are there.
struct OperatorDescription {
  uint32_t version{kVersion};
  void* (*createWithoutStatus)(OperatorDescription const*, Table, KernelInfo const*){nullptr};
  char const* (*name)(OperatorDescription const*){nullptr};
  char const* (*provider)(OperatorDescription const*){nullptr};
  int32_t (*inputType)(OperatorDescription const*, size_t){nullptr};
  size_t (*inputs)(OperatorDescription const*){nullptr};
  int32_t (*outputType)(OperatorDescription const*, size_t){nullptr};
  size_t (*outputs)(OperatorDescription const*){nullptr};
  void (*computeWithoutStatus)(void*, KernelContext*){nullptr};
  void (*destroy)(void*){nullptr};
  int32_t (*inputArity)(OperatorDescription const*, size_t){nullptr};
  int32_t (*outputArity)(OperatorDescription const*, size_t){nullptr};
  int32_t (*inputMemory)(OperatorDescription const*, size_t){nullptr};
  int32_t (*leastInputs)(OperatorDescription const*){nullptr};
  int32_t (*inputsAlike)(OperatorDescription const*){nullptr};
  int32_t (*leastOutputs)(OperatorDescription const*){nullptr};
  int32_t (*outputsAlike)(OperatorDescription const*){nullptr};
  Status* (*create)(OperatorDescription const*, Table, KernelInfo const*, void**){nullptr};
  Status* (*compute)(void*, KernelContext*){nullptr};
  Status* (*infer)(OperatorDescription const*, ShapeContext*){nullptr};
  int32_t (*startVersion)(OperatorDescription const*){nullptr};
  int32_t (*endVersion)(OperatorDescription const*){nullptr};
  size_t (*inPlace)(int32_t**, int32_t**){nullptr};
  void (*releaseInPlace)(int32_t*, int32_t*){nullptr};
  size_t (*aliases)(int32_t**, int32_t**){nullptr};
  void (*releaseAliases)(int32_t*, int32_t*){nullptr};
};
static_assert(sizeof(OperatorDescription) == 26 * sizeof(void*), "the layout of version 18");

}  // namespace gr::api
