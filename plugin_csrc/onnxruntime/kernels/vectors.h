// Vectors of LANES floats, and what the kernels do with them. Included once for each set of instructions: no templates of the
// standard library, since the linker would keep one copy of them for all, which might be that of AVX-512.
#pragma once

#include <stdint.h>
#include <string.h>
#if LANES > 4
#include <immintrin.h>
#endif

#include "kernels.h"

namespace gr {
namespace {

using Vector = float __attribute__((vector_size(LANES * 4)));
using Integers = int32_t __attribute__((vector_size(LANES * 4)));
using Bits = uint32_t __attribute__((vector_size(LANES * 4)));  // which may overflow
using Unaligned = float __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
using Halves = uint16_t __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

#define UNROLL _Pragma("GCC unroll 16")
#define INLINE inline __attribute__((always_inline))
// The products are functions of their own: beside other code GCC keeps the constants of that in registers, and spills
// accumulators inside the loop.
#define NOINLINE __attribute__((noinline))

INLINE Vector load(float const* from) { return *reinterpret_cast<Unaligned const*>(from); }
INLINE void store(float* to, Vector x) { *reinterpret_cast<Unaligned*>(to) = x; }
INLINE Vector all(float x) { return x - Vector{}; }
INLINE Integers lanes() {
  Integers x;
  UNROLL for (int32_t i = 0; i < LANES; ++i) x[i] = i;
  return x;
}
// The first `count` lanes, and 0 in the others.
INLINE Vector first(Vector x, int64_t count) {
  return lanes() < static_cast<int32_t>(count > LANES ? LANES : count) - Integers{} ? x : Vector{};
}
INLINE float sum(Vector x) {
  float total = 0;
  UNROLL for (int32_t i = 0; i < LANES; ++i) total += x[i];
  return total;
}
INLINE float greatest(Vector x) {
  float most = x[0];
  UNROLL for (int32_t i = 1; i < LANES; ++i) most = x[i] > most ? x[i] : most;
  return most;
}
INLINE int64_t padded(int64_t count) { return (count + LANES - 1) / LANES * LANES; }
INLINE int64_t smaller(int64_t left, int64_t right) { return left < right ? left : right; }

// 2^t, by 2^n times a polynomial; beyond -125 and 125 t counts as that. Of NaN it makes some number.
INLINE Vector exp2(Vector t) {
#if LANES == 16
  t = (Vector)_mm512_range_ps((__m512)t, _mm512_set1_ps(125.F), 2);  // what is nearer to 0, with the sign of t
  Vector const whole = (Vector)_mm512_roundscale_ps((__m512)t, 0), rest = t - whole;
#else
  t = t > 125.F ? all(125.F) : t;
  t = t < -125.F ? all(-125.F) : t;
  Vector const shifted = t + 12582912.F, rest = t - (shifted - 12582912.F);
#endif
  Vector power = rest * 1.326473180e-03F + 9.671513944e-03F;
  power = power * rest + 5.550733732e-02F;
  power = power * rest + 2.402224206e-01F;
  power = power * rest + 6.931469776e-01F;
  power = power * rest + 1.F;
#if LANES == 16
  return (Vector)_mm512_scalef_ps((__m512)power, (__m512)whole);
#else
  return (Vector)((Bits)power + ((Bits)shifted << 23));
#endif
}
constexpr float kLog2E = 1.44269504F;
INLINE Vector exponential(Vector x) { return x == x ? exp2(x * kLog2E) : x; }

// 1 / (1 + e^-x), but of NaN some number. It is 0 where e^-x is beyond what `exp2` reaches: the least it makes would not be
// lost beside an x near the end of float32, such as a mask that was added.
INLINE Vector logistic(Vector x) {
  Vector const divisor = exp2(x * -kLog2E) + 1.F;
#if LANES == 16
  Vector const rough = (Vector)_mm512_rcp14_ps((__m512)divisor), inverse = rough * (2.F - divisor * rough);
#else
  Vector const inverse = 1.F / divisor;
#endif
  return x < -125.F / kLog2E ? Vector{} : inverse;
}
INLINE Vector sigmoid(Vector x) { return x == x ? logistic(x) : x; }
INLINE Vector silu(Vector x) { return x * logistic(x); }

INLINE Vector widen(Halves x, Element element) {
  Bits const bits = __builtin_convertvector(x, Bits);
  if (element == Element::kBfloat16) {
    return (Vector)(bits << 16);
  }
#if LANES == 16
  return (Vector)_mm512_cvtph_ps((__m256i)x);
#elif LANES == 8
  return (Vector)_mm256_cvtph_ps((__m128i)x);
#else
  // Sign, exponent and fraction, moved to where a float has them. Of a subnormal number the subtraction makes a normal one.
  Bits const magnitude = bits & 0x7fff, moved = (magnitude << 13) + (112 << 23);
  Vector const small = (Vector)(moved + (1 << 23)) - (Vector)(Bits{} + (113 << 23));
  Bits const large = moved + (magnitude >= 0x7c00 ? Bits{} + (112 << 23) : Bits{});
  return (Vector)((magnitude < 0x400 ? (Bits)small : large) | (bits & 0x8000) << 16);
#endif
}

// To the nearest, to the even one of two that are as near.
INLINE Halves narrow(Vector x, Element element) {
  Bits const bits = (Bits)x;
  if (element == Element::kBfloat16) {
    Bits const rounded = bits + 0x7fffU + (bits >> 16 & 1U);
    return __builtin_convertvector((x == x ? rounded : bits | 0x400000) >> 16, Halves);
  }
#if LANES == 16
  return (Halves)_mm512_cvtps_ph((__m512)x, 0);
#elif LANES == 8
  return (Halves)_mm256_cvtps_ph((__m256)x, 0);
#else
  Bits const magnitude = bits & 0x7fffffff;
  Bits const normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112 << 23)) >> 13;
  // Adding 0.5 leaves a subnormal number's fraction in the lowest bits, rounded by the addition.
  Bits const small = (Bits)((Vector)magnitude + 0.5F) - (126 << 23);
  Bits const large = magnitude > 0x7f800000 ? Bits{} + 0x7e00 : Bits{} + 0x7c00;
  Bits const half = magnitude < (113 << 23) ? small : magnitude >= (143 << 23) ? large : normal;
  return __builtin_convertvector(half | (bits >> 16 & 0x8000), Halves);
#endif
}

// Element number `at` as a float.
INLINE float number(Operand const& from, int64_t at) {
  switch (from.element) {
    case Element::kFloat32:
      return static_cast<float const*>(from.data)[at];
    case Element::kBool:
      return static_cast<uint8_t const*>(from.data)[at] != 0 ? 1.F : 0.F;
    default: {
      Halves one{};
      one[0] = static_cast<uint16_t const*>(from.data)[at];
      return widen(one, from.element)[0];
    }
  }
}

// Elements [at, at + count) as floats, and 0 up to a multiple of LANES.
NOINLINE void copyRow(Operand const& from, int64_t at, int64_t count, float* to) {
  int64_t const whole = count / LANES * LANES;
  if (from.element == Element::kFloat32) {
    float const* const x = static_cast<float const*>(from.data) + at;
    for (int64_t i = 0; i < whole; i += LANES) store(to + i, load(x + i));
    for (int64_t i = whole; i < count; ++i) to[i] = x[i];
  } else if (from.element == Element::kBool) {
    uint8_t const* const x = static_cast<uint8_t const*>(from.data) + at;
    for (int64_t i = 0; i < count; ++i) to[i] = x[i] != 0 ? 1.F : 0.F;
  } else {
    uint16_t const* const x = static_cast<uint16_t const*>(from.data) + at;
    for (int64_t i = 0; i < whole; i += LANES) store(to + i, widen(*reinterpret_cast<Halves const*>(x + i), from.element));
    if (whole < count) {
      Halves rest{};
      for (int64_t i = whole; i < count; ++i) rest[i - whole] = x[i];
      store(to + whole, widen(rest, from.element));
    }
  }
  for (int64_t i = count; i < padded(count); ++i) to[i] = 0;
}

// The same where they stand, if they are floats, or copied to `room`. What is behind `count` is not set.
INLINE float const* row(Operand const& from, int64_t at, int64_t count, float* room) {
  if (from.element == Element::kFloat32) {
    return static_cast<float const*>(from.data) + at;
  }
  copyRow(from, at, count, room);
  return room;
}

NOINLINE void writeRow(float const* from, int64_t count, Target const& to, int64_t at) {
  int64_t const whole = count / LANES * LANES;
  if (to.element == Element::kFloat32) {
    float* const x = static_cast<float*>(to.data) + at;
    for (int64_t i = 0; i < whole; i += LANES) store(x + i, load(from + i));
    for (int64_t i = whole; i < count; ++i) x[i] = from[i];
    return;
  }
  uint16_t* const x = static_cast<uint16_t*>(to.data) + at;
  for (int64_t i = 0; i < whole; i += LANES) *reinterpret_cast<Halves*>(x + i) = narrow(load(from + i), to.element);
  if (whole < count) {
    Vector rest{};
    for (int64_t i = whole; i < count; ++i) rest[i - whole] = from[i];
    Halves const narrowed = narrow(rest, to.element);
    for (int64_t i = whole; i < count; ++i) x[i] = narrowed[i - whole];
  }
}
INLINE void clearRow(int64_t count, Target const& to, int64_t at) {
  int64_t const size = to.element == Element::kFloat32 ? 4 : 2;
  memset(static_cast<char*>(to.data) + at * size, 0, static_cast<size_t>(count * size));
}

// LANES x LANES: out[column][row], `apart` floats from one column to the next; rows from `count` on are 0.
INLINE void transpose(float const* in, int64_t stride, int64_t count, float* out, int64_t apart) {
  Vector r[LANES];
  UNROLL for (int32_t i = 0; i < LANES; ++i) r[i] = i < count ? load(in + i * stride) : Vector{};
#if LANES == 16
  __m512 t[16], u[16];
  UNROLL for (int32_t i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps((__m512)r[i], (__m512)r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps((__m512)r[i], (__m512)r[i + 1]);
  }
  UNROLL for (int32_t i = 0; i < 16; i += 4) {
    UNROLL for (int32_t j = 0; j < 2; ++j) {
      u[i + 2 * j] = (__m512)_mm512_unpacklo_pd((__m512d)t[i + j], (__m512d)t[i + j + 2]);
      u[i + 2 * j + 1] = (__m512)_mm512_unpackhi_pd((__m512d)t[i + j], (__m512d)t[i + j + 2]);
    }
  }
  UNROLL for (int32_t j = 0; j < 4; ++j) {
    __m512 const e = _mm512_shuffle_f32x4(u[j], u[4 + j], 0x88), f = _mm512_shuffle_f32x4(u[j], u[4 + j], 0xdd);
    __m512 const g = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x88), h = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xdd);
    store(out + j * apart, (Vector)_mm512_shuffle_f32x4(e, g, 0x88));
    store(out + (4 + j) * apart, (Vector)_mm512_shuffle_f32x4(f, h, 0x88));
    store(out + (8 + j) * apart, (Vector)_mm512_shuffle_f32x4(e, g, 0xdd));
    store(out + (12 + j) * apart, (Vector)_mm512_shuffle_f32x4(f, h, 0xdd));
  }
#elif LANES == 8
  __m256 t[8], u[8];
  UNROLL for (int32_t i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps((__m256)r[i], (__m256)r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps((__m256)r[i], (__m256)r[i + 1]);
  }
  UNROLL for (int32_t i = 0; i < 8; i += 4) {
    UNROLL for (int32_t j = 0; j < 2; ++j) {
      u[i + 2 * j] = (__m256)_mm256_unpacklo_pd((__m256d)t[i + j], (__m256d)t[i + j + 2]);
      u[i + 2 * j + 1] = (__m256)_mm256_unpackhi_pd((__m256d)t[i + j], (__m256d)t[i + j + 2]);
    }
  }
  UNROLL for (int32_t j = 0; j < 4; ++j) {
    store(out + j * apart, (Vector)_mm256_permute2f128_ps(u[j], u[4 + j], 0x20));
    store(out + (4 + j) * apart, (Vector)_mm256_permute2f128_ps(u[j], u[4 + j], 0x31));
  }
#else
  UNROLL for (int32_t j = 0; j < LANES; ++j) {
    Vector column;
    UNROLL for (int32_t i = 0; i < LANES; ++i) column[i] = r[i][j];
    store(out + j * apart, column);
  }
#endif
}

// The sums of LANES vectors as one: number i is the sum of x[i].
INLINE Vector sums(Vector const* x) {
#if LANES == 16
  __m512 t[8], u[4];
  UNROLL for (int32_t i = 0; i < 8; ++i) {
    __m512 const a = (__m512)x[2 * i], b = (__m512)x[2 * i + 1];
    t[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  UNROLL for (int32_t i = 0; i < 4; ++i) {
    __m512d const a = (__m512d)t[2 * i], b = (__m512d)t[2 * i + 1];
    u[i] = _mm512_add_ps((__m512)_mm512_unpacklo_pd(a, b), (__m512)_mm512_unpackhi_pd(a, b));
  }
  __m512 const a = _mm512_add_ps(_mm512_shuffle_f32x4(u[0], u[1], 0x88), _mm512_shuffle_f32x4(u[0], u[1], 0xdd));
  __m512 const b = _mm512_add_ps(_mm512_shuffle_f32x4(u[2], u[3], 0x88), _mm512_shuffle_f32x4(u[2], u[3], 0xdd));
  return (Vector)_mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
#elif LANES == 8
  __m256 t[4], u[2];
  UNROLL for (int32_t i = 0; i < 4; ++i) t[i] = _mm256_hadd_ps((__m256)x[2 * i], (__m256)x[2 * i + 1]);
  UNROLL for (int32_t i = 0; i < 2; ++i) u[i] = _mm256_hadd_ps(t[2 * i], t[2 * i + 1]);
  return (Vector)_mm256_add_ps(_mm256_permute2f128_ps(u[0], u[1], 0x20), _mm256_permute2f128_ps(u[0], u[1], 0x31));
#else
  Vector result;
  UNROLL for (int32_t i = 0; i < LANES; ++i) result[i] = sum(x[i]);
  return result;
#endif
}

// <x, y> of rows that are padded with zeros.
INLINE float product(float const* x, float const* y, int64_t count) {
  Vector total[2] = {};
  int64_t i = 0;
  for (; i + 2 * LANES <= padded(count); i += 2 * LANES) {
    total[0] += load(x + i) * load(y + i);
    total[1] += load(x + i + LANES) * load(y + i + LANES);
  }
  if (i < padded(count)) total[0] += load(x + i) * load(y + i);
  return sum(total[0] + total[1]);
}

// A row of `count`, padded to whole vectors, normed in place: gamma and beta are rows as long, or null.
INLINE void normalise(float* x, int64_t count, Norm norm, float epsilon, float const* gamma, float const* beta) {
  if (norm == Norm::kNone || count == 0) return;
  int64_t const end = padded(count);
  float mean = 0;
  if (norm != Norm::kRms) {
    Vector total{};
    for (int64_t i = 0; i < end; i += LANES) total += first(load(x + i), count - i);
    mean = sum(total) / static_cast<float>(count);
  }
  Vector squares{};
  for (int64_t i = 0; i < end; i += LANES) {
    Vector const centred = first(load(x + i) - mean, count - i);
    squares += centred * centred;
  }
  float const factor = 1.F / __builtin_sqrtf(sum(squares) / static_cast<float>(count) + epsilon);
  for (int64_t i = 0; i < end; i += LANES) {
    Vector value = (load(x + i) - mean) * factor;
    if (gamma != nullptr) value *= load(gamma + i);
    if (beta != nullptr) value += load(beta + i);
    store(x + i, value);
  }
}

}  // namespace
}  // namespace gr
