// Whether the tensors of a node are of types and shapes that its operator takes.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <vector>

#include "node.h"

namespace gr {

using TensorSizes = std::vector<std::vector<int64_t>>;

// Whether an input may have this type where T is `data`.
bool allows(Role role, nvinfer1::DataType type, nvinfer1::DataType data);

// The place of the input that has the node's element type T.
int32_t dataInput(Signature const& signature, Node const& node);

// T, as the inputs' types tell; refuses types that do not go together.
nvinfer1::DataType checkTypes(Signature const& signature, Node const& node, nvinfer1::DataType const* types, int32_t count);

// Refuses inputs, and outputs where there are any, whose shapes are not as declared; -1 is a size that is not known.
void checkShapes(Signature const& signature, Node const& node, TensorSizes const& inputs, TensorSizes const& outputs);

}  // namespace gr
