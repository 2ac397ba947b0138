// Products on tiles that stay in registers: kGroupRows rows by kTile columns.
#pragma once

#include "vectors.h"

namespace gr {
namespace {

constexpr int32_t kTileVectors = LANES == 16 ? 4 : 2;
constexpr int32_t kTile = kTileVectors * LANES;

// Rows [count, size] that are `stride` apart become [size][kBlockKeys], with zeros where there is no row.
INLINE void packKeys(float const* keys, int64_t stride, int64_t count, int64_t size, float* out) {
  for (int64_t j = 0; j < kBlockKeys; j += LANES) {
    int64_t c = 0;
    for (; c + LANES <= size; c += LANES)
      transpose(keys + j * stride + c, stride, count - j, out + c * kBlockKeys + j, kBlockKeys);
    for (; c < size; ++c) {
      for (int64_t i = j; i < j + LANES; ++i) out[c * kBlockKeys + i] = i < count ? keys[i * stride + c] : 0.F;
    }
  }
}

// scores[M rows][C vectors] = q k^T, of packed keys
template <int32_t M, int32_t C>
NOINLINE void multiplyKeys(float const* q, int64_t stride, float const* keys, int64_t size, float* scores) {
  Vector total[M][C];
  UNROLL for (int32_t i = 0; i < M; ++i) { UNROLL for (int32_t j = 0; j < C; ++j) total[i][j] = Vector{}; }
  for (int64_t c = 0; c < size; ++c) {
    Vector key[C];
    UNROLL for (int32_t j = 0; j < C; ++j) key[j] = load(keys + c * kBlockKeys + j * LANES);
    UNROLL for (int32_t i = 0; i < M; ++i) {
      Vector const x = all(q[i * stride + c]);
      UNROLL for (int32_t j = 0; j < C; ++j) total[i][j] += x * key[j];
    }
  }
  UNROLL for (int32_t i = 0; i < M; ++i) {
    UNROLL for (int32_t j = 0; j < C; ++j) store(scores + i * kBlockKeys + j * LANES, total[i][j]);
  }
}

// out[M rows][C vectors] += weights[M rows][count] values[count][C vectors], of values `stride` apart; `fresh`: = instead of +=
template <int32_t M, int32_t C>
NOINLINE void addValues(float const* weights, float const* values, int64_t stride, int64_t count, float* out, int64_t apart,
                        bool fresh) {
  Vector total[M][C];
  UNROLL for (int32_t i = 0; i < M; ++i) {
    UNROLL for (int32_t j = 0; j < C; ++j) total[i][j] = fresh ? Vector{} : load(out + i * apart + j * LANES);
  }
  for (int64_t c = 0; c < count; ++c) {
    Vector value[C];
    UNROLL for (int32_t j = 0; j < C; ++j) value[j] = load(values + c * stride + j * LANES);
    UNROLL for (int32_t i = 0; i < M; ++i) {
      Vector const x = all(weights[i * kBlockKeys + c]);
      UNROLL for (int32_t j = 0; j < C; ++j) total[i][j] += x * value[j];
    }
  }
  UNROLL for (int32_t i = 0; i < M; ++i) {
    UNROLL for (int32_t j = 0; j < C; ++j) store(out + i * apart + j * LANES, total[i][j]);
  }
}

// The same for any number of columns.
template <int32_t M>
INLINE void scoresOf(float const* q, int64_t stride, float const* keys, int64_t size, int64_t columns, float* scores) {
  for (int64_t c = 0; c < columns; c += kTile) {
    int64_t const vectors = (columns - c + LANES - 1) / LANES;
    float const* const key = keys + c;
    float* const to = scores + c;
#if LANES == 16
    if (vectors >= 4) {
      multiplyKeys<M, 4>(q, stride, key, size, to);
    } else if (vectors == 3) {
      multiplyKeys<M, 3>(q, stride, key, size, to);
    } else
#endif
        if (vectors >= 2) {
      multiplyKeys<M, 2>(q, stride, key, size, to);
    } else {
      multiplyKeys<M, 1>(q, stride, key, size, to);
    }
  }
}

template <int32_t M>
INLINE void gather(float const* weights, float const* values, int64_t stride, int64_t width, int64_t count, float* out,
                   int64_t apart, bool fresh) {
  for (int64_t c = 0; c < width; c += kTile) {
    int64_t const vectors = (width - c) / LANES;
    float const* const value = values + c;
    float* const to = out + c;
#if LANES == 16
    if (vectors >= 4) {
      addValues<M, 4>(weights, value, stride, count, to, apart, fresh);
    } else if (vectors == 3) {
      addValues<M, 3>(weights, value, stride, count, to, apart, fresh);
    } else
#endif
        if (vectors >= 2) {
      addValues<M, 2>(weights, value, stride, count, to, apart, fresh);
    } else {
      addValues<M, 1>(weights, value, stride, count, to, apart, fresh);
    }
  }
}

// Calls `work`, which takes the number of rows as a template argument, for a group of at most kGroupRows.
template <typename Work>
INLINE void forRows(int64_t rows, Work const& work) {
  switch (rows) {
    case 6:
      return work.template run<6>();
    case 5:
      return work.template run<5>();
    case 4:
      return work.template run<4>();
    case 3:
      return work.template run<3>();
    case 2:
      return work.template run<2>();
    default:
      return work.template run<1>();
  }
}

}  // namespace
}  // namespace gr
