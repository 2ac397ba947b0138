#include "sizes.h"

#include <algorithm>

namespace gr {
namespace {

using nvinfer1::DimensionOperation;

std::string text(char const* name, int64_t size) {
  return (name == nullptr ? std::string() : std::string(name) + " = ") + std::to_string(size);
}

int64_t number(DimensionOperation operation, int64_t left, int64_t right) {
  switch (operation) {
    case DimensionOperation::kSUM:
      return left + right;
    case DimensionOperation::kSUB:
      return left - right;
    case DimensionOperation::kPROD:
      return left * right;
    case DimensionOperation::kMIN:
      return smaller(left, right);
    case DimensionOperation::kMAX:
      return larger(left, right);
    case DimensionOperation::kFLOOR_DIV:
      return floorDivide(left, right);
    case DimensionOperation::kCEIL_DIV:
      return roundedDivide(left, right);
    default:
      refuse("sizes are not compared");
  }
}

}  // namespace

int64_t floorDivide(int64_t value, int64_t by) {
  if (by == 0) {
    refuse("a size is divided by 0");
  }
  int64_t const quotient = value / by;
  return quotient * by != value && (value < 0) != (by < 0) ? quotient - 1 : quotient;
}

int64_t roundedDivide(int64_t value, int64_t by) { return -floorDivide(-value, by); }

int64_t modulo(int64_t value, int64_t by) { return value - floorDivide(value, by) * by; }

int64_t smaller(int64_t left, int64_t right) { return std::min(left, right); }

int64_t larger(int64_t left, int64_t right) { return std::max(left, right); }

Size::Size(Shapes const& shapes, Shapes::Expression expression) : mValue(Shapes::known(expression)) {
  if (mValue < 0) {
    mShapes = &shapes;
    mExpression = expression;
  }
}

int64_t Size::value(char const* name) const {
  if (!isKnown()) {
    refuse(name, " has to be known when the engine is built, since it decides which kernel runs");
  }
  return mValue;
}

Shapes::Expression Size::expression(Shapes const& shapes) const { return isKnown() ? shapes.constant(mValue) : mExpression; }

Size apply(DimensionOperation operation, Size const& left, Size const& right) {
  if (left.isKnown() && right.isKnown()) {
    return number(operation, left.mValue, right.mValue);
  }
  Shapes const& shapes = left.isKnown() ? *right.mShapes : *left.mShapes;
  return {shapes, shapes.apply(operation, left.expression(shapes), right.expression(shapes))};
}

Size operator+(Size const& left, Size const& right) { return apply(DimensionOperation::kSUM, left, right); }

Size operator-(Size const& left, Size const& right) { return apply(DimensionOperation::kSUB, left, right); }

Size operator*(Size const& left, Size const& right) { return apply(DimensionOperation::kPROD, left, right); }

Size floorDivide(Size const& value, Size const& by) { return apply(DimensionOperation::kFLOOR_DIV, value, by); }

Size roundedDivide(Size const& value, Size const& by) { return apply(DimensionOperation::kCEIL_DIV, value, by); }

Size modulo(Size const& value, Size const& by) { return value - floorDivide(value, by) * by; }

Size smaller(Size const& left, Size const& right) { return apply(DimensionOperation::kMIN, left, right); }

Size larger(Size const& left, Size const& right) { return apply(DimensionOperation::kMAX, left, right); }

void requireRank(Shapes const& shapes, char const* input, int32_t rank) { shapes.input(input, rank); }

void requireRank(Run const& run, char const* input, int32_t rank) {
  if (run.input(input).rank() != rank) {
    refuse("input ", input, " has ", run.input(input).rank(), " axes, not ", rank);
  }
}

void sizeOf(Shapes const& shapes, char const* input, int32_t axis, Size& found) {
  found = Size(shapes, shapes.input(input).d[axis]);
}

void sizeOf(Run const& run, char const* input, int32_t axis, int64_t& found) { found = run.input(input).size(axis); }

void requireSize(Size const& found, Size const& wanted, char const* input, int32_t axis, char const* name) {
  if (found.isKnown() && wanted.isKnown() && found.valueOr(0) != wanted.valueOr(0)) {
    refuse("axis ", axis, " of input ", input, " is ", found.valueOr(0), ", not ", text(name, wanted.valueOr(0)));
  }
}

void requireOutputs(Node const& node, std::vector<std::string> const& outputs) {
  if (node.outputs() != outputs) {
    std::ostringstream names;
    for (std::string const& name : outputs) {
      names << " " << name;
    }
    refuse("the kernel writes the outputs", names.str(), ", all of them, in this order");
  }
}

}  // namespace gr
