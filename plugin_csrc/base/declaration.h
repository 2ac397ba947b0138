// What an operator's inputs and outputs may be, and whether tensors are that: patterns/language/declaration.py in C++, which
// documents the rules. The data is written from there into operators/declared.cpp. Nothing here needs TensorRT.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gr {

// Which element types a tensor may have. T is float32, float16 or bfloat16, and the same for the whole node.
enum class Role {
  kData,    // T
  kAffine,  // T or float32
  kIndex,   // int32 or int64
  kMask,    // bool or T
  kInt32,
  kInt64,
  kBool,
};

// The product of the sizes `factors`, plus `plus`; or 1 where it broadcasts.
struct DeclaredAxis {
  std::vector<char const*> factors;
  int64_t plus;
  bool broadcasts;
};

struct DeclaredShape {
  char const* text;
  bool rest;  // any number of axes before these, the same for all tensors of the node
  std::vector<DeclaredAxis> axes;
  char const* attribute;  // with `value`, which nodes it is for; or an input, with "given" or "absent"; nullptr: all
  char const* value;
};

struct DeclaredTensor {
  char const* name;  // ends in '*' for any number of tensors name1, name2, ...
  Role role;
  bool optional;
  std::vector<DeclaredShape> shapes;
};

struct Declaration {
  char const* name;
  std::vector<DeclaredTensor> inputs;
  std::vector<DeclaredTensor> outputs;
  std::vector<std::pair<char const*, char const*>> sizes;  // size -> the integer attribute that it is
  std::vector<std::pair<char const*, int64_t>> least;      // size -> the least that it may be
};

// The declaration of an operator of onnx-fuse's own; defined in operators/declared.cpp, so not for libraries of other operators.
Declaration const& declarationOf(std::string_view name);

// A tensor of a node and its axes; -1 is a size that is not known yet.
struct Shaped {
  std::string name;
  std::vector<int64_t> axes;
};

// Whether a declared name stands for any number of tensors.
bool isVariadic(std::string_view declared);
// Whether a name of a node is one that is declared as `declared`, such as ids_3 as ids_*.
bool stands(std::string_view name, std::string_view declared);

// The sizes that tensors of these shapes have. Refuses where one is not allowed. `attribute` gives a node's attribute as text.
std::map<std::string, int64_t> boundSizes(Declaration const& declaration, std::vector<Shaped> const& tensors,
                                          std::function<std::string(char const*)> const& attribute);

}  // namespace gr
