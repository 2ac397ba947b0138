// What a node of the model says: its attributes, and which of the operator's inputs and outputs it has.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "declaration.h"

namespace gr {

enum class Kind { kInt, kFloat, kString, kInts, kFloats };

struct Attribute {
  char const* name;
  Kind kind;
  bool optional{false};
};

struct Input {
  char const* name;  // ends in '*' for any number of inputs name1, name2, ...
  Role role;
  bool optional{false};
};

// The description of an operator, the same as that of the Python operator.
struct Signature {
  char const* name;
  std::vector<Input> inputs;
  std::vector<char const*> outputs;  // all of type T; those after the first are optional
  std::vector<Attribute> attributes;
  std::vector<nvinfer1::DataType> types{nvinfer1::DataType::kFLOAT, nvinfer1::DataType::kHALF, nvinfer1::DataType::kBF16};
  char const* pluginNamespace{"gr.ml.infra"};
  char const* version{"1"};
  Declaration const* declaration{nullptr};  // which shapes its tensors may have; nullptr where its own code tells

  // Whether T may be this type.
  bool takes(nvinfer1::DataType type) const;
  // The input that a present name stands for, or nullptr.
  Input const* input(std::string_view present) const;
};

// The signature of an operator whose inputs and outputs are declared.
Signature declared(Declaration const& declaration, std::vector<Attribute> attributes);

class Node {
 public:
  // Refuses attributes that are missing, of another type, or name inputs and outputs that the operator does not have.
  Node(Signature const& signature, nvinfer1::PluginFieldCollection const& fields);

  // Names of the inputs and outputs that the node has, in their order.
  std::vector<std::string> const& inputs() const { return mInputs; }
  std::vector<std::string> const& outputs() const { return mOutputs; }
  // Position of an input or output, or -1 where the node does not have it.
  int32_t input(std::string_view name) const;
  int32_t output(std::string_view name) const;
  bool hasInput(std::string_view name) const { return input(name) >= 0; }

  int64_t integer(std::string const& name) const;
  float number(std::string const& name) const;
  std::string const& text(std::string const& name) const;
  std::vector<int64_t> integers(std::string const& name) const;  // empty where absent
  std::vector<float> numbers(std::string const& name) const;     // empty where absent
  // An integer or string attribute as text.
  std::string told(std::string const& name) const;
  // The place of the attribute's text in `choices`; refuses any other.
  int32_t choice(std::string const& name, std::vector<char const*> const& choices) const;

  // All attributes in words, the same for the same node.
  std::string described() const;
  // The attributes as fields that the constructor takes again; the node owns them.
  nvinfer1::PluginFieldCollection const& fields() const;

 private:
  using Value = std::variant<std::vector<int32_t>, std::vector<float>, std::string>;

  Value const& value(std::string const& name) const;

  std::map<std::string, Value> mValues;
  std::vector<std::string> mInputs;
  std::vector<std::string> mOutputs;
  mutable std::vector<nvinfer1::PluginField> mFields;
  mutable nvinfer1::PluginFieldCollection mCollection{};
};

}  // namespace gr
