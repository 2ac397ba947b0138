// TensorRT's expressions of sizes, evaluated at once, where there is no TensorRT that would make them.
#pragma once

#include <NvInferRuntime.h>

#include <algorithm>
#include <deque>

namespace gr {

class Expression final : public nvinfer1::IDimensionExpr {
 public:
  Expression(int64_t value, bool constant) : mValue{value, constant} { mImpl = &mValue; }
  int64_t value() const { return mValue.value; }
  ~Expression() noexcept override = default;

 private:
  struct Value final : nvinfer1::apiv::VDimensionExpr {
    Value(int64_t given, bool isKnown) : value(given), constant(isKnown) {}
    bool isConstant() const override { return constant; }
    int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
    int64_t value;
    bool constant;
  };
  Value mValue;
};

class ExpressionBuilder final : public nvinfer1::IExprBuilder {
 public:
  ExpressionBuilder() : mOperations(mAll) { mImpl = &mOperations; }
  ~ExpressionBuilder() noexcept override = default;

  nvinfer1::IDimensionExpr const* dimension(int64_t value, bool constant) { return &mAll.emplace_back(value, constant); }

 private:
  using All = std::deque<Expression>;

  struct Operations final : nvinfer1::apiv::VExprBuilder {
    explicit Operations(All& all) : made(all) {}

    nvinfer1::IDimensionExpr const* constant(int64_t value) override { return &made.emplace_back(value, true); }

    nvinfer1::IDimensionExpr const* operation(nvinfer1::DimensionOperation op, nvinfer1::IDimensionExpr const& first,
                                              nvinfer1::IDimensionExpr const& second) override {
      int64_t const a = static_cast<Expression const&>(first).value();
      int64_t const b = static_cast<Expression const&>(second).value();
      return &made.emplace_back(apply(op, a, b), first.isConstant() && second.isConstant());
    }

    nvinfer1::IDimensionExpr const* declareSizeTensor(int32_t, nvinfer1::IDimensionExpr const&,
                                                      nvinfer1::IDimensionExpr const&) override {
      return nullptr;
    }

    static int64_t apply(nvinfer1::DimensionOperation op, int64_t a, int64_t b) {
      switch (op) {
        case nvinfer1::DimensionOperation::kSUM:
          return a + b;
        case nvinfer1::DimensionOperation::kPROD:
          return a * b;
        case nvinfer1::DimensionOperation::kMAX:
          return std::max(a, b);
        case nvinfer1::DimensionOperation::kMIN:
          return std::min(a, b);
        case nvinfer1::DimensionOperation::kSUB:
          return a - b;
        case nvinfer1::DimensionOperation::kEQUAL:
          return a == b ? 1 : 0;
        case nvinfer1::DimensionOperation::kLESS:
          return a < b ? 1 : 0;
        case nvinfer1::DimensionOperation::kFLOOR_DIV:
          return b == 0 ? 0 : a / b;
        case nvinfer1::DimensionOperation::kCEIL_DIV:
          return b == 0 ? 0 : (a + b - 1) / b;
      }
      return 0;
    }

    All& made;
  };

  All mAll;
  Operations mOperations;
};

}  // namespace gr
