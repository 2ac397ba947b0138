// Sizes that have names, for the operators that onnx_fuse.runtime.plugins.own_cpp writes: one expression serves when the engine is
// built, on `Size`, and when it runs, on int64_t.
#pragma once

#include "operator.h"

namespace gr {

int64_t floorDivide(int64_t value, int64_t by);    // as // in Python; refuses 0
int64_t roundedDivide(int64_t value, int64_t by);  // up
int64_t modulo(int64_t value, int64_t by);
int64_t smaller(int64_t left, int64_t right);
int64_t larger(int64_t left, int64_t right);

// A number, or TensorRT's expression of sizes that are not known before the engine runs.
class Size {
 public:
  Size(int64_t value) : mValue(value) {}  // NOLINT: a number is a size
  Size(Shapes const& shapes, Shapes::Expression expression);

  bool isKnown() const { return mExpression == nullptr; }
  // What it is; where that is not known, `otherwise`.
  int64_t valueOr(int64_t otherwise) const { return isKnown() ? mValue : otherwise; }
  // What it is; refuses where that is not known.
  int64_t value(char const* name) const;
  Shapes::Expression expression(Shapes const& shapes) const;

 private:
  friend Size apply(nvinfer1::DimensionOperation operation, Size const& left, Size const& right);

  int64_t mValue{0};
  Shapes const* mShapes{nullptr};
  Shapes::Expression mExpression{nullptr};
};

Size operator+(Size const& left, Size const& right);
Size operator-(Size const& left, Size const& right);
Size operator*(Size const& left, Size const& right);
Size floorDivide(Size const& value, Size const& by);
Size roundedDivide(Size const& value, Size const& by);
Size modulo(Size const& value, Size const& by);
Size smaller(Size const& left, Size const& right);
Size larger(Size const& left, Size const& right);

// Refuses where an input has another rank.
void requireRank(Shapes const& shapes, char const* input, int32_t rank);
void requireRank(Run const& run, char const* input, int32_t rank);
void sizeOf(Shapes const& shapes, char const* input, int32_t axis, Size& found);
void sizeOf(Run const& run, char const* input, int32_t axis, int64_t& found);
// Refuses where an axis is known to have another size; `name` is that size's name, or nullptr.
void requireSize(Size const& found, Size const& wanted, char const* input, int32_t axis, char const* name);
// Refuses nodes that do not name exactly these outputs, in this order.
void requireOutputs(Node const& node, std::vector<std::string> const& outputs);

// The size of an axis.
template <typename N, typename Source>
N sizeOf(Source const& source, char const* input, int32_t axis) {
  N found{0};
  sizeOf(source, input, axis, found);
  return found;
}

}  // namespace gr
