#include "node.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>

#include "refusal.h"

namespace gr {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

std::vector<std::string> split(std::string const& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) {
    parts.push_back(part);
  }
  return parts;
}

template <typename T>
std::vector<T> list(PluginField const& field) {
  T const* const data = static_cast<T const*>(field.data);
  return data == nullptr ? std::vector<T>{} : std::vector<T>(data, data + field.length);
}

std::vector<int32_t> integersOf(PluginField const& field, char const* operation) {
  if (field.type == PluginFieldType::kINT32) {
    return list<int32_t>(field);
  }
  if (field.type != PluginFieldType::kINT64) {
    refuse(operation, ": attribute ", field.name, " has to be an integer");
  }
  std::vector<int32_t> values;
  for (int64_t const value : list<int64_t>(field)) {
    if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()) {
      refuse(operation, ": attribute ", field.name, " is ", value, ", which does not fit into 32 bits");
    }
    values.push_back(static_cast<int32_t>(value));
  }
  return values;
}

int32_t place(std::vector<std::string> const& names, std::string_view name) {
  auto const found = std::find(names.begin(), names.end(), name);
  return found == names.end() ? -1 : static_cast<int32_t>(found - names.begin());
}

}  // namespace

bool Signature::takes(nvinfer1::DataType type) const { return std::find(types.begin(), types.end(), type) != types.end(); }

Input const* Signature::input(std::string_view present) const {
  auto const found = std::find_if(inputs.begin(), inputs.end(), [&](Input const& item) { return stands(present, item.name); });
  return found == inputs.end() ? nullptr : &*found;
}

Signature declared(Declaration const& declaration, std::vector<Attribute> attributes) {
  Signature signature{declaration.name, {}, {}, std::move(attributes)};
  for (DeclaredTensor const& item : declaration.inputs) {
    signature.inputs.push_back({item.name, item.role, item.optional});
  }
  for (DeclaredTensor const& item : declaration.outputs) {
    signature.outputs.push_back(item.name);
  }
  signature.declaration = &declaration;
  return signature;
}

Node::Node(Signature const& signature, nvinfer1::PluginFieldCollection const& fields) {
  std::map<std::string, PluginField const*> given;
  for (int32_t index = 0; fields.fields != nullptr && index < fields.nbFields; ++index) {
    if (fields.fields[index].name == nullptr) {
      refuse(signature.name, ": an attribute has no name");
    }
    given[fields.fields[index].name] = &fields.fields[index];
  }
  std::vector<Attribute> attributes = signature.attributes;
  attributes.push_back({"inputs", Kind::kString});
  attributes.push_back({"outputs", Kind::kString});
  for (Attribute const& attribute : attributes) {
    auto const found = given.find(attribute.name);
    if (found == given.end()) {
      if (!attribute.optional) {
        refuse(signature.name, ": attribute ", attribute.name, " is missing");
      }
      continue;
    }
    PluginField const& field = *found->second;
    bool const single = attribute.kind == Kind::kInt || attribute.kind == Kind::kFloat;
    if (field.length == 0 && (attribute.kind == Kind::kInts || attribute.kind == Kind::kFloats)) {
      continue;  // an empty list has no type
    }
    if (field.length < 0) {
      refuse(signature.name, ": attribute ", field.name, " has a length of ", field.length);
    }
    if (single && (field.length != 1 || field.data == nullptr)) {
      refuse(signature.name, ": attribute ", field.name, " has to be one number, not ", field.length);
    }
    if (attribute.kind == Kind::kString) {
      if (field.type != PluginFieldType::kCHAR) {
        refuse(signature.name, ": attribute ", field.name, " has to be a string");
      }
      std::vector<char> const text = list<char>(field);
      auto const end = std::find(text.begin(), text.end(), '\0');  // the length may count the zero at the end
      mValues[field.name] = std::string(text.begin(), end);
    } else if (attribute.kind == Kind::kInt || attribute.kind == Kind::kInts) {
      mValues[field.name] = integersOf(field, signature.name);
    } else {
      if (field.type != PluginFieldType::kFLOAT32) {
        refuse(signature.name, ": attribute ", field.name, " has to be a float");
      }
      mValues[field.name] = list<float>(field);
    }
  }
  mInputs = split(text("inputs"));
  mOutputs = split(text("outputs"));
  for (std::string const& name : mInputs) {
    if (signature.input(name) == nullptr) {
      refuse(signature.name, " has no input ", name);
    }
  }
  for (Input const& input : signature.inputs) {
    if (!input.optional && !isVariadic(input.name) && !hasInput(input.name)) {
      refuse(signature.name, ": input ", input.name, " is missing");
    }
  }
  for (std::string const& name : mOutputs) {
    if (std::find(signature.outputs.begin(), signature.outputs.end(), name) == signature.outputs.end()) {
      refuse(signature.name, " has no output ", name);
    }
  }
  if (mOutputs.empty()) {
    refuse(signature.name, ": attribute outputs names none");
  }
}

int32_t Node::input(std::string_view name) const { return place(mInputs, name); }

int32_t Node::output(std::string_view name) const { return place(mOutputs, name); }

Node::Value const& Node::value(std::string const& name) const { return mValues.at(name); }

int64_t Node::integer(std::string const& name) const { return std::get<std::vector<int32_t>>(value(name)).at(0); }

float Node::number(std::string const& name) const { return std::get<std::vector<float>>(value(name)).at(0); }

std::string const& Node::text(std::string const& name) const { return std::get<std::string>(value(name)); }

std::string Node::told(std::string const& name) const {
  auto const* const found = std::get_if<std::string>(&value(name));
  return found == nullptr ? std::to_string(integer(name)) : *found;
}

std::vector<int64_t> Node::integers(std::string const& name) const {
  if (mValues.count(name) == 0) {
    return {};
  }
  auto const& values = std::get<std::vector<int32_t>>(value(name));
  return {values.begin(), values.end()};
}

std::vector<float> Node::numbers(std::string const& name) const {
  return mValues.count(name) == 0 ? std::vector<float>{} : std::get<std::vector<float>>(value(name));
}

int32_t Node::choice(std::string const& name, std::vector<char const*> const& choices) const {
  std::string const& found = text(name);
  for (size_t index = 0; index < choices.size(); ++index) {
    if (found == choices[index]) {
      return static_cast<int32_t>(index);
    }
  }
  refuse("attribute ", name, " is \"", found, "\", which is not known");
}

std::string Node::described() const {
  std::ostringstream text;
  text.precision(std::numeric_limits<float>::max_digits10);
  for (auto const& [name, value] : mValues) {
    text << name << '=';
    if (auto const* integers = std::get_if<std::vector<int32_t>>(&value)) {
      std::copy(integers->begin(), integers->end(), std::ostream_iterator<int32_t>(text, ","));
    } else if (auto const* numbers = std::get_if<std::vector<float>>(&value)) {
      std::copy(numbers->begin(), numbers->end(), std::ostream_iterator<float>(text, ","));
    } else {
      text << std::get<std::string>(value);
    }
    text << ';';
  }
  return text.str();
}

nvinfer1::PluginFieldCollection const& Node::fields() const {
  mFields.clear();
  for (auto const& [name, value] : mValues) {
    if (auto const* integers = std::get_if<std::vector<int32_t>>(&value)) {
      mFields.emplace_back(name.c_str(), integers->data(), PluginFieldType::kINT32, static_cast<int32_t>(integers->size()));
    } else if (auto const* numbers = std::get_if<std::vector<float>>(&value)) {
      mFields.emplace_back(name.c_str(), numbers->data(), PluginFieldType::kFLOAT32, static_cast<int32_t>(numbers->size()));
    } else {
      auto const& text = std::get<std::string>(value);
      mFields.emplace_back(name.c_str(), text.c_str(), PluginFieldType::kCHAR, static_cast<int32_t>(text.size() + 1));
    }
  }
  mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
  return mCollection;
}

}  // namespace gr
