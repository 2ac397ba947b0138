#include "calls.h"

#include <algorithm>
#include <exception>
#include <iterator>
#include <memory>
#include <string_view>

#include "checks.h"
#include "expressions.h"
#include "operator.h"

namespace gr {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

static_assert(static_cast<int>(Kind::kInt) == calls::kInt && static_cast<int>(Kind::kFloat) == calls::kFloat &&
                  static_cast<int>(Kind::kString) == calls::kString && static_cast<int>(Kind::kInts) == calls::kInts &&
                  static_cast<int>(Kind::kFloats) == calls::kFloats,
              "kinds of attributes are counted alike");

thread_local std::string failure;

// What `function` returns, or `otherwise` where it throws, whose reason is kept: nothing is thrown into the caller.
template <typename Result, typename Function>
Result kept(Result otherwise, Function const& function) noexcept {
  try {
    return function();
  } catch (std::exception const& error) {
    try {
      failure = error.what();
    } catch (...) {  // no memory for the message
    }
    return otherwise;
  }
}

// A node for good: what TensorRT may change between runs is no part of it.
struct Made {
  explicit Made(Entry const& entry, nvinfer1::PluginFieldCollection const& fields)
      : entry(entry), node(entry.signature, fields), operation(entry.make()) {
    operation->read(node);
  }

  Entry const& entry;
  Node node;
  std::unique_ptr<Operator> operation;
};

DataType typeOf(int32_t type) {
  switch (type) {
    case 1:
      return DataType::kFLOAT;
    case 6:
      return DataType::kINT32;
    case 7:
      return DataType::kINT64;
    case 9:
      return DataType::kBOOL;
    case 10:
      return DataType::kHALF;
    case 16:
      return DataType::kBF16;
    default:
      refuse("there are no kernels for element type ", type, " of ONNX");
  }
}

// Tensors as an operator takes them.
struct Tensors {
  Tensors(calls::Tensor const* given, int32_t count) {
    for (calls::Tensor const* tensor = given; tensor != given + count; ++tensor) {
      PluginTensorDesc& description = descriptions.emplace_back();
      if (tensor->rank > nvinfer1::Dims::MAX_DIMS) {
        refuse("a tensor has ", tensor->rank, " axes; at most ", nvinfer1::Dims::MAX_DIMS, " are possible");
      }
      description.type = typeOf(tensor->type);
      description.format = nvinfer1::TensorFormat::kLINEAR;
      description.dims.nbDims = tensor->rank;
      std::copy_n(tensor->sizes, tensor->rank, description.dims.d);
      types.push_back(description.type);
      sizes.emplace_back(tensor->sizes, tensor->sizes + tensor->rank);
      data.push_back(tensor->data);
    }
  }

  std::vector<PluginTensorDesc> descriptions;
  std::vector<DataType> types;
  TensorSizes sizes;
  std::vector<void*> data;
};

Entry const* find(char const* operation) {
  auto const found = std::find_if(operators().begin(), operators().end(),
                                  [&](Entry const& entry) { return std::string_view(entry.signature.name) == operation; });
  return found == operators().end() ? nullptr : &*found;
}

bool attribute(char const* operation, int32_t place, char const** name, calls::Kind* kind) {
  Entry const* const entry = find(operation);
  if (entry == nullptr || place >= static_cast<int32_t>(entry->signature.attributes.size())) {
    return false;
  }
  Attribute const& found = entry->signature.attributes[static_cast<size_t>(place)];
  *name = found.name;
  *kind = static_cast<calls::Kind>(found.kind);
  return true;
}

void* create(char const* operation, calls::Attribute const* attributes, int32_t count) {
  return kept<void*>(nullptr, [&] {
    Entry const* const entry = find(operation);
    if (entry == nullptr) {
      refuse("the plugin library has no operator ", operation);
    }
    std::vector<PluginField> fields;
    std::transform(attributes, attributes + count, std::back_inserter(fields), [](calls::Attribute const& given) {
      bool const isInteger = given.kind == calls::kInt || given.kind == calls::kInts;
      auto const type = isInteger                      ? PluginFieldType::kINT64
                        : given.kind == calls::kString ? PluginFieldType::kCHAR
                                                       : PluginFieldType::kFLOAT32;
      return PluginField(given.name, given.data, type, given.count);
    });
    return new Made(*entry, {count, fields.data()});
  });
}

int64_t prepare(void const* node, calls::Tensor const* inputs, int32_t inputCount, calls::Output* outputs,
                int32_t outputCount) {
  return kept<int64_t>(-1, [&] {
    auto const& made = *static_cast<Made const*>(node);
    Tensors const given(inputs, inputCount);
    checkTypes(made.entry.signature, made.node, given.types.data(), inputCount);
    checkShapes(made.entry.signature, made.node, given.sizes, {});
    ExpressionBuilder builder;
    std::vector<nvinfer1::DimsExprs> known;
    std::vector<Tensor> tensors;
    for (size_t index = 0; index < given.sizes.size(); ++index) {
      nvinfer1::DimsExprs& shape = known.emplace_back();
      shape.nbDims = static_cast<int32_t>(given.sizes[index].size());
      std::transform(given.sizes[index].begin(), given.sizes[index].end(), shape.d,
                     [&](int64_t size) { return builder.dimension(size, true); });
      tensors.push_back({given.types[index], given.sizes[index], nullptr});
    }
    auto const shapes = made.operation->shapes(made.node, Shapes(made.node, known.data(), inputCount, builder));
    if (outputCount != static_cast<int32_t>(shapes.size())) {
      refuse("the node has ", outputCount, " outputs, its attribute outputs names ", shapes.size());
    }
    for (nvinfer1::DimsExprs const& shape : shapes) {
      outputs->type = inputs[dataInput(made.entry.signature, made.node)].type;
      outputs->rank = shape.nbDims;
      std::transform(shape.d, shape.d + shape.nbDims, outputs->sizes,
                     [](nvinfer1::IDimensionExpr const* size) { return static_cast<Expression const*>(size)->value(); });
      ++outputs;
    }
    return static_cast<int64_t>(made.operation->workspace(tensors));
  });
}

bool run(void const* node, calls::Tensor const* inputs, int32_t inputCount, calls::Tensor const* outputs, int32_t outputCount,
         void* workspace, void* stream) {
  return kept(false, [&] {
    auto const& made = *static_cast<Made const*>(node);
    Tensors const in(inputs, inputCount);
    Tensors const out(outputs, outputCount);
    DataType const data = checkTypes(made.entry.signature, made.node, in.types.data(), inputCount);
    if (outputCount != static_cast<int32_t>(made.node.outputs().size())) {
      refuse("the node has ", outputCount, " outputs, its attribute outputs names ", made.node.outputs().size());
    }
    if (std::any_of(out.types.begin(), out.types.end(), [&](DataType type) { return type != data; })) {
      refuse("an output is not of the element type of the inputs");
    }
    checkShapes(made.entry.signature, made.node, in.sizes, out.sizes);
    Run const launches(made.node, in.descriptions.data(), out.descriptions.data(), in.data.data(), out.data.data(), workspace,
                       static_cast<cudaStream_t>(stream));
    made.operation->run(launches);
    launches.start();
    return true;
  });
}

}  // namespace
}  // namespace gr

extern "C" __attribute__((visibility("default"))) gr::calls::Table const* gr_ml_infra_calls() {
  static gr::calls::Table const table{gr::calls::kVersion,
                                      [] { return gr::failure.c_str(); },
                                      [] {
                                        return gr::kept(false, [] {
                                          gr::checkDevices();
                                          return true;
                                        });
                                      },
                                      gr::attribute,
                                      gr::create,
                                      [](void* node) { delete static_cast<gr::Made*>(node); },
                                      gr::prepare,
                                      gr::run};
  return &table;
}
