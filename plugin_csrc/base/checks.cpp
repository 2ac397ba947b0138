#include "checks.h"

#include "refusal.h"

namespace gr {

using nvinfer1::DataType;

bool allows(Role role, DataType type, DataType data) {
  switch (role) {
    case Role::kData:
      return type == data;
    case Role::kAffine:
      return type == data || type == DataType::kFLOAT;
    case Role::kIndex:
      return type == DataType::kINT32 || type == DataType::kINT64;
    case Role::kMask:
      return type == DataType::kBOOL || type == data;
    case Role::kInt32:
      return type == DataType::kINT32;
    case Role::kInt64:
      return type == DataType::kINT64;
    case Role::kBool:
      return type == DataType::kBOOL;
  }
  return false;
}

int32_t dataInput(Signature const& signature, Node const& node) {
  // Where there are only tables, the first of them counts.
  for (Role const role : {Role::kData, Role::kAffine}) {
    for (size_t index = 0; index < node.inputs().size(); ++index) {
      if (signature.input(node.inputs()[index])->role == role) {
        return static_cast<int32_t>(index);
      }
    }
  }
  refuse("no input has the element type of the output");
}

DataType checkTypes(Signature const& signature, Node const& node, DataType const* types, int32_t count) {
  if (count != static_cast<int32_t>(node.inputs().size())) {
    refuse("the node has ", count, " inputs, its attribute inputs names ", node.inputs().size());
  }
  DataType const data = types[dataInput(signature, node)];
  if (!signature.takes(data)) {
    refuse("there are no kernels for data type ", static_cast<int>(data));
  }
  for (int32_t index = 0; index < count; ++index) {
    std::string const& name = node.inputs()[static_cast<size_t>(index)];
    if (!allows(signature.input(name)->role, types[index], data)) {
      refuse("input ", name, " has data type ", static_cast<int>(types[index]), ", which does not go with data type ",
             static_cast<int>(data));
    }
  }
  return data;
}

void checkShapes(Signature const& signature, Node const& node, TensorSizes const& inputs, TensorSizes const& outputs) {
  if (signature.declaration == nullptr) {
    return;
  }
  std::vector<Shaped> tensors;
  for (size_t index = 0; index < inputs.size(); ++index) {
    tensors.push_back({node.inputs().at(index), inputs[index]});
  }
  for (size_t index = 0; index < outputs.size(); ++index) {
    tensors.push_back({node.outputs().at(index), outputs[index]});
  }
  boundSizes(*signature.declaration, tensors, [&](char const* attribute) { return node.told(attribute); });
}

}  // namespace gr
