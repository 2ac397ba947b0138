// InteractionTritonFast and FMInteraction.
#pragma once

#include "products.h"

namespace gr {
namespace {

constexpr int32_t kPairColumns = LANES == 4 ? 2 : 4, kPairRows = LANES / kPairColumns;

// The dot products of kPairRows rows and kPairColumns rows, `size` floats each and as far apart: whole vectors of them.
NOINLINE void multiplyPairs(float const* x, float const* y, int64_t size, float* products) {
  Vector total[LANES];
  UNROLL for (int32_t l = 0; l < LANES; ++l) total[l] = Vector{};
  for (int64_t c = 0; c < size; c += LANES) {
    Vector column[kPairColumns];
    UNROLL for (int32_t l = 0; l < kPairColumns; ++l) column[l] = load(y + l * size + c);
    UNROLL for (int32_t k = 0; k < kPairRows; ++k) {
      Vector const value = load(x + k * size + c);
      UNROLL for (int32_t l = 0; l < kPairColumns; ++l) total[k * kPairColumns + l] += value * column[l];
    }
  }
  store(products, sums(total));
}

// Features come in tiles of kPairRows and of kPairColumns; rows behind the last are 0.
INLINE int64_t tiledFeatures(Interaction const& a) { return (a.features + 3) / 4 * 4; }

int64_t interactionScratch(Interaction const& a) { return tiledFeatures(a) * padded(a.size) + padded(a.width); }

// A sample is copied to where each load of a vector is aligned: many tensors begin 16 bytes off a line of the cache, and each
// load of 64 bytes would touch two.
void interaction(Interaction const& a, int64_t begin, int64_t end, float* scratch) {
  int64_t const size = padded(a.size), off = a.self ? 0 : 1, features = a.features;
  float* const rows = scratch;
  float* const narrowed = rows + tiledFeatures(a) * size;
  memset(rows, 0, static_cast<size_t>(tiledFeatures(a) * size) * sizeof(float));
  for (int64_t sample = begin; sample < end; ++sample) {
    for (int64_t f = 0; f < features; ++f) copyRow(a.feature[f], sample * a.stride[f], a.size, rows + f * size);
    bool const direct = a.y.element == Element::kFloat32;
    float* const y = direct ? static_cast<float*>(a.y.data) + sample * a.width : narrowed;
    float* const z = y + a.first;
    if (a.denseAt >= 0) memcpy(y + a.denseAt, rows, static_cast<size_t>(a.size) * sizeof(float));
    for (int64_t i = 0; i < features; i += kPairRows) {
      // The products keep the core busy long enough to fetch a sample that is needed two from here.
      for (int64_t f = i; sample + 2 < end && f < smaller(i + kPairRows, features); ++f) {
        int64_t const bytes = a.feature[f].element == Element::kFloat32 ? 4 : 2;
        char const* const next = static_cast<char const*>(a.feature[f].data) + (sample + 2) * a.stride[f] * bytes;
        for (int64_t c = 0; c < a.size * bytes; c += 64) __builtin_prefetch(next + c);
      }
      for (int64_t j = 0; j < i + kPairRows - off && j < features; j += kPairColumns) {
        alignas(64) float products[LANES];
        multiplyPairs(rows + i * size, rows + j * size, size, products);
        for (int64_t k = 0; k < kPairRows && i + k < features; ++k) {
          int64_t const p = i + k, count = smaller(p + 1 - off - j, kPairColumns);  // columns of row p in the triangle
          float const* const from = products + k * kPairColumns;
          if (a.lower) {
            float* const to = z + (a.self ? p * (p + 1) / 2 : p * (p - 1) / 2) + j;
            if (count == kPairColumns) {
              memcpy(to, from, kPairColumns * sizeof(float));
            } else {
              for (int64_t l = 0; l < count; ++l) to[l] = from[l];
            }
          } else {
            for (int64_t l = 0; l < count; ++l) {
              int64_t const q = j + l;
              z[q * (features - off) - q * (q - 1) / 2 + p - q - off] = from[l];
            }
          }
        }
      }
    }
    if (!direct) writeRow(y, a.width, a.y, sample * a.width);
  }
}

int64_t fmScratch(Fm const& a) { return 3 * padded(a.size); }

// Each feature times the sum of those before it: the half of (sum e)^2 - sum e^2, without that difference.
void fm(Fm const& a, int64_t begin, int64_t end, float* scratch) {
  int64_t const size = padded(a.size);
  float *const before = scratch, *const pairs = before + size, *const room = pairs + size;
  for (int64_t sample = begin; sample < end; ++sample) {
    memset(before, 0, static_cast<size_t>(2 * size) * sizeof(float));
    for (int64_t f = 0; f < a.features; ++f) {
      copyRow(a.e, (sample * a.features + f) * a.size, a.size, room);
      for (int64_t i = 0; i < size; i += LANES) {
        Vector const x = load(room + i), others = load(before + i);
        store(pairs + i, load(pairs + i) + x * others);
        store(before + i, others + x);
      }
    }
    if (a.reduce) {
      Vector total{};
      for (int64_t i = 0; i < size; i += LANES) total += load(pairs + i);
      float const one = sum(total);
      writeRow(&one, 1, a.output, sample);
    } else {
      writeRow(pairs, a.size, a.output, sample * a.size);
    }
  }
}

}  // namespace
}  // namespace gr
