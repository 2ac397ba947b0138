// HSTUHierarchicalAttention. Keys outside, heads inside, groups of rows innermost: the packed keys and the values of a block
// serve all rows of a task, and heads that share a bias or a mask find its block in the cache.
#pragma once

#include "products.h"

namespace gr {
namespace {

struct HstuTask {
  Hstu const& a;
  int64_t batch, row, end, limit;             // limit: keys and rows of this sample that count
  int64_t width;                              // of a head's values in `out`, whole vectors
  int64_t apart;                              // floats from one row of `out` to the next
  float* out;                                 // [rows, heads, width]: y itself where that fits
  float *keys, *values, *rows;                // a packed block of keys, a block of values, room to widen a block
  float *scores, *bias, *mask, *q;            // of a group of rows
  float *total, *partial, *highest, *weight;  // of level_softmax: [rows, heads] each, partial as `out`
  bool* begun;                                // [groups, heads]: whether `out` has been written
};

INLINE int64_t groupsOf(int64_t rows) { return (rows + kGroupRows - 1) / kGroupRows; }
INLINE int64_t blocksOf(int64_t keys) { return (keys + kBlockKeys - 1) / kBlockKeys; }

// y takes the sums itself where it is float32 and its heads are whole vectors.
INLINE bool inPlace(Hstu const& a) { return a.y.element == Element::kFloat32 && a.valueSize % LANES == 0; }

int64_t hstuScratch(Hstu const& a, int64_t rows) {
  int64_t const width = padded(a.valueSize), line = a.heads * width, widest = padded(a.size) > width ? padded(a.size) : width;
  int64_t const block =
      kBlockKeys * (padded(a.size) + width + widest) + 3 * kGroupRows * kBlockKeys + kGroupRows * padded(a.size);
  int64_t const finish = 4 * padded(a.heads * a.valueSize) + LANES;
  int64_t const softmax = a.levels > 0 ? rows * line + 3 * padded(rows * a.heads) : 0;
  return block + finish + softmax + (inPlace(a) ? 0 : rows * line) + padded(groupsOf(rows) * a.heads / 4 + 1);
}

// A tile of a bias or mask, [M rows or 1][kBlockKeys], where it stands if its rows can be read whole, else in `room`.
// `apart`: floats from one row to the next.
template <int32_t M>
INLINE float const* tileOf(Plane const& plane, int64_t batch, int64_t head, int64_t row, int64_t key, int64_t count,
                           int64_t keys, float* room, int64_t& apart) {
  int64_t const at = batch * plane.batch + head * plane.head + row * plane.row + key * plane.column;
  if (plane.operand.element == Element::kFloat32 && plane.column == 1 && keys - key >= kBlockKeys) {
    apart = plane.row;
    return static_cast<float const*>(plane.operand.data) + at;
  }
  int32_t const rows = plane.row == 0 ? 1 : M;
  apart = plane.row == 0 ? 0 : kBlockKeys;
  for (int32_t i = 0; i < rows; ++i) {
    float* const to = room + i * kBlockKeys;
    if (plane.column == 0) {
      Vector const x = all(number(plane.operand, at + i * plane.row));
      for (int64_t j = 0; j < kBlockKeys; j += LANES) store(to + j, x);
    } else {
      copyRow(plane.operand, at + i * plane.row, count, to);
    }
  }
  return room;
}

struct Tiles {  // of the bias and of the mask; null where there is none
  float const *bias, *mask;
  int64_t biasApart, maskApart;
  int64_t limits[kGroupRows];  // columns that each row sees
};

// scores = silu(alpha scores + bias) mask, and 0 from each row's limit on.
template <int32_t M>
NOINLINE void activate(Hstu const& a, Tiles const& tiles, int64_t columns, float* scores) {
  bool const inside = tiles.bias != nullptr && a.biasInsideAlpha;
  float const before = inside ? 1.F : a.alpha, after = inside ? a.alpha : 1.F;
  for (int32_t i = 0; i < M; ++i) {
    float* const line = scores + i * kBlockKeys;
    float const* const bias = tiles.bias == nullptr ? nullptr : tiles.bias + i * tiles.biasApart;
    float const* const mask = tiles.mask == nullptr ? nullptr : tiles.mask + i * tiles.maskApart;
    int64_t j = 0;
    // Several vectors at a time: each waits long for the exponential of its own.
    for (; j + 4 * LANES <= tiles.limits[i]; j += 4 * LANES) {
      Vector x[4];
      UNROLL for (int32_t l = 0; l < 4; ++l) x[l] = load(line + j + l * LANES) * before;
      if (bias != nullptr) {
        UNROLL for (int32_t l = 0; l < 4; ++l) x[l] += load(bias + j + l * LANES);
      }
      if (inside) {
        UNROLL for (int32_t l = 0; l < 4; ++l) x[l] *= after;
      }
      UNROLL for (int32_t l = 0; l < 4; ++l) x[l] = silu(x[l]);
      if (mask != nullptr) {
        UNROLL for (int32_t l = 0; l < 4; ++l) {
          Vector const keep = load(mask + j + l * LANES);
          x[l] = keep == 0.F ? Vector{} : x[l] * keep;
        }
      }
      UNROLL for (int32_t l = 0; l < 4; ++l) store(line + j + l * LANES, x[l]);
    }
    for (; j < tiles.limits[i]; j += LANES) {
      Vector x = load(line + j) * before;
      if (bias != nullptr) x += load(bias + j);
      x *= after;
      x = silu(x);
      if (mask != nullptr) {
        Vector const keep = load(mask + j);
        x = keep == 0.F ? Vector{} : x * keep;
      }
      store(line + j, first(x, tiles.limits[i] - j));
    }
    for (; j < columns; j += LANES) store(line + j, Vector{});
  }
}

// One more block of a softmax that runs along: scores become weights, and what there is so far shrinks where a greater score
// comes. `highest` and `total` are [M] numbers, `apart` floats from one row to the next.
template <int32_t M>
NOINLINE void soften(Tiles const& tiles, float factor, int64_t columns, float* scores, float* highest, float* total,
                     int64_t apart, float* partial, int64_t width, int64_t lineApart) {
  constexpr float kLowest = -3.4028234e38F;
  for (int32_t i = 0; i < M; ++i) {
    float* const line = scores + i * kBlockKeys;
    float const* const mask = tiles.mask == nullptr ? nullptr : tiles.mask + i * tiles.maskApart;
    Vector most = all(kLowest);
    for (int64_t j = 0; j < columns; j += LANES) {
      Integers kept = lanes() < static_cast<int32_t>(tiles.limits[i] - j) - Integers{};
      if (mask != nullptr) kept &= load(mask + j) != 0.F;
      Vector const x = kept ? load(line + j) * factor : all(-__builtin_inff());
      store(line + j, x);
      most = x > most ? x : most;
    }
    float const before = highest[i * apart], now = greatest(most) > before ? greatest(most) : before;
    Vector share{};
    for (int64_t j = 0; j < columns; j += LANES) {
      Vector const x = load(line + j);
      Vector const y = x == -__builtin_inff() ? Vector{} : exponential(x - now);
      store(line + j, y);
      share += y;
    }
    if (now != before) {
      float const shrink = before == kLowest ? 0.F : exponential(all(before - now))[0];
      total[i * apart] *= shrink;
      for (int64_t j = 0; j < width; j += LANES) store(partial + i * lineApart + j, load(partial + i * lineApart + j) * shrink);
      highest[i * apart] = now;
    }
    total[i * apart] += sum(share);
  }
}

// The values of a block of one head, whole vectors of them, `apart` floats from one key to the next.
struct Values {
  float const* start;
  int64_t apart;
};

// Packs the keys of a block, and copies its values where they cannot be read as they are.
INLINE Values loadBlock(HstuTask const& task, int64_t head, int64_t key, int64_t count) {
  Hstu const& a = task.a;
  int64_t const first = task.batch * a.length + key, keyApart = a.heads * a.size, valueApart = a.heads * a.valueSize;
  float const* keys = static_cast<float const*>(a.k.data) + first * keyApart + head * a.size;
  int64_t stride = keyApart;
  if (a.k.element != Element::kFloat32) {
    stride = padded(a.size);
    for (int64_t i = 0; i < count; ++i) copyRow(a.k, (first + i) * keyApart + head * a.size, a.size, task.rows + i * stride);
    keys = task.rows;
  }
  packKeys(keys, stride, count, a.size, task.keys);
  int64_t const start = first * valueApart + head * a.valueSize;
  if (a.v.element == Element::kFloat32 && a.valueSize % LANES == 0)
    return {static_cast<float const*>(a.v.data) + start, valueApart};
  for (int64_t i = 0; i < count; ++i) copyRow(a.v, start + i * valueApart, a.valueSize, task.values + i * task.width);
  return {task.values, task.width};
}

// One group of rows against one block of keys, of one head.
struct HstuGroup {
  HstuTask const& task;
  Values values;
  Tiles& tiles;
  int64_t head, row, key, count, columns;  // columns: of the block's `count`, those that a row of the group sees
  float factor;                            // of level_softmax's scores

  template <int32_t M>
  INLINE void run() const {
    Hstu const& a = task.a;
    int64_t const inTask = row - task.row, at = (task.batch * a.length + row) * a.heads * a.size + head * a.size;
    float const* q = task.q;
    int64_t stride = padded(a.size);
    if (a.q.element == Element::kFloat32) {
      q = static_cast<float const*>(a.q.data) + at;
      stride = a.heads * a.size;
    } else {
      for (int32_t i = 0; i < M; ++i) copyRow(a.q, at + i * a.heads * a.size, a.size, task.q + i * stride);
    }
    if (a.bias.operand.data != nullptr) {
      tiles.bias = tileOf<M>(a.bias, task.batch, head, row, key, count, a.length, task.bias, tiles.biasApart);
    }
    if (tiles.mask != nullptr) {
      tiles.mask = tileOf<M>(a.mask, task.batch, head, row, key, count, a.length, task.mask, tiles.maskApart);
    }
    scoresOf<M>(q, stride, task.keys, a.size, columns, task.scores);
    int64_t const place = inTask * task.apart + head * task.width;
    if (a.levels == 0) {
      activate<M>(a, tiles, columns, task.scores);
      bool& begun = task.begun[inTask / kGroupRows * a.heads + head];
      gather<M>(task.scores, values.start, values.apart, task.width, columns, task.out + place, task.apart, !begun);
      begun = true;
      return;
    }
    int64_t const state = inTask * a.heads + head;
    soften<M>(tiles, factor, columns, task.scores, task.highest + state, task.total + state, a.heads, task.partial + place,
              task.width, task.apart);
    gather<M>(task.scores, values.start, values.apart, task.width, columns, task.partial + place, task.apart, false);
  }
};

// What comes after a block, on its way into the cache while there is other work: rows are pages apart, which no hardware
// prefetcher follows.
template <int32_t kLevel>
INLINE void prefetchRows(Operand const& from, int64_t at, int64_t count) {
  int64_t const size = from.element == Element::kFloat32 ? 4 : from.element == Element::kBool ? 1 : 2;
  char const* const start = static_cast<char const*>(from.data) + at * size;
  for (char const* line = start - reinterpret_cast<uintptr_t>(start) % 64; line < start + count * size; line += 64)
    __builtin_prefetch(line, 0, kLevel);
}
INLINE void prefetchTile(Plane const& plane, HstuTask const& task, int64_t head, int64_t row, int64_t key, int64_t count) {
  if (plane.operand.data == nullptr || plane.row == 0 || plane.column == 0) return;
  int64_t const at = task.batch * plane.batch + head * plane.head + row * plane.row + key;
  for (int64_t i = 0; i < kGroupRows; ++i) prefetchRows<3>(plane.operand, at + i * plane.row, count);
}

INLINE uint8_t extentOf(Hstu const& a, Plane const& plane, uint8_t const* extents, int64_t batch, int64_t head, int64_t row,
                        int64_t block) {
  int64_t const groups = plane.row == 0 ? 1 : groupsOf(a.length), heads = plane.head == 0 ? 1 : a.heads;
  int64_t const at = (plane.batch == 0 ? 0 : batch) * heads + (plane.head == 0 ? 0 : head);
  return extents[(at * groups + (plane.row == 0 ? 0 : row / kGroupRows)) * blocksOf(a.length) + block];
}

// All that a block of keys adds to the rows of a task.
INLINE void addBlock(HstuTask const& task, int64_t key, int64_t count, int64_t last, float factor) {
  Hstu const& a = task.a;
  int64_t const rows = smaller(task.end, task.limit), block = key / kBlockKeys, offset = key % kBlockKeys;
  int64_t from = task.row;
  if (a.causal && key > from) from += (key - from) / kGroupRows * kGroupRows;  // the groups before see none of these keys
  for (int64_t head = 0; head < a.heads; ++head) {
    Values values{nullptr, 0};
    int64_t const nextHead = head + 1 < a.heads ? head + 1 : 0, nextKey = nextHead != 0 ? key : key + count;
    int64_t const there = smaller(kBlockKeys, last - nextKey), position = task.batch * a.length + nextKey;
    int64_t ahead = 0, each = (there + groupsOf(rows - from)) / (groupsOf(rows - from) + 1) + 1;
    for (int64_t row = from; row < rows; row += kGroupRows) {
      int64_t const members = smaller(kGroupRows, rows - row);
      Tiles tiles{nullptr, nullptr, 0, 0, {}};
      int64_t seen = count;
      if (a.maskExtents != nullptr) {
        uint8_t const extent = extentOf(a, a.mask, a.maskExtents, task.batch, head, row, block);
        seen = smaller(seen, (extent & 0x7f) - offset);
        if ((extent & kAllOnes) == 0) tiles.mask = task.mask;
      }
      if (a.biasExtents != nullptr) {
        seen = smaller(seen, extentOf(a, a.bias, a.biasExtents, task.batch, head, row, block) - offset);
      }
      int64_t columns = 0;
      for (int64_t i = 0; i < members; ++i) {
        int64_t const limit = a.causal ? smaller(seen, row + i + 1 - key) : seen;
        tiles.limits[i] = limit < 0 ? 0 : limit;
        columns = tiles.limits[i] > columns ? tiles.limits[i] : columns;
      }
      if (columns == 0) continue;
      if (values.start == nullptr) values = loadBlock(task, head, key, count);
      if (members == kGroupRows) {
        prefetchTile(a.bias, task, head, row, key, columns);
        if (tiles.mask != nullptr) prefetchTile(a.mask, task, head, row, key, columns);
      }
      for (int64_t i = 0; i < each && ahead < there; ++i, ++ahead) {
        prefetchRows<2>(a.k, ((position + ahead) * a.heads + nextHead) * a.size, a.size);
        prefetchRows<2>(a.v, ((position + ahead) * a.heads + nextHead) * a.valueSize, a.valueSize);
      }
      forRows(members, HstuGroup{task, values, tiles, head, row, key, count, columns, factor});
    }
  }
}

// out += weight / total partial, of a level that has ended; `weight` sums up what the levels with a key weigh.
INLINE void addLevel(HstuTask const& task, float share) {
  Hstu const& a = task.a;
  for (int64_t r = 0; r < smaller(task.end, task.limit) - task.row; ++r) {
    for (int64_t head = 0; head < a.heads; ++head) {
      int64_t const state = r * a.heads + head;
      if (task.total[state] == 0.F) continue;
      float const factor = share / task.total[state];
      task.weight[state] += share;
      float* const out = task.out + r * task.apart + head * task.width;
      float const* const partial = task.partial + r * task.apart + head * task.width;
      for (int64_t j = 0; j < task.width; j += LANES) store(out + j, load(out + j) + load(partial + j) * factor);
    }
  }
}

void runLevels(HstuTask const& task) {
  Hstu const& a = task.a;
  int64_t const rows = smaller(task.end, task.limit) - task.row, step = (a.length + a.levels - 1) / a.levels;
  if (rows <= 0) return;
  memset(task.out, 0, static_cast<size_t>(rows * task.apart) * sizeof(float));
  memset(task.weight, 0, static_cast<size_t>(rows * a.heads) * sizeof(float));
  memset(task.begun, 1, static_cast<size_t>(groupsOf(rows) * a.heads));
  float factor = a.alpha;
  for (int64_t level = 0; level < a.levels; ++level, factor *= a.decay) {
    int64_t const last = smaller((level + 1) * step, task.limit);
    memset(task.partial, 0, static_cast<size_t>(rows * task.apart) * sizeof(float));
    memset(task.total, 0, static_cast<size_t>(rows * a.heads) * sizeof(float));
    for (int64_t i = 0; i < rows * a.heads; ++i) task.highest[i] = -3.4028234e38F;
    for (int64_t key = level * step; key < last;) {
      // Blocks end where those of the mask's extents do.
      int64_t const next = smaller(last, (key / kBlockKeys + 1) * kBlockKeys);
      addBlock(task, key, next - key, last, factor);
      key = next;
    }
    addLevel(task, static_cast<float>(level + 1) / static_cast<float>(a.levels));
  }
  for (int64_t i = 0; i < rows * a.heads; ++i) {
    float* const out = task.out + i / a.heads * task.apart + i % a.heads * task.width;
    float const factor = task.weight[i] > 0.F ? 1.F / task.weight[i] : 1.F;
    for (int64_t j = 0; j < task.width; j += LANES) store(out + j, load(out + j) * factor);
  }
}

// Norm, gate and store of each row; what has not been written is 0.
void finishRows(HstuTask const& task, float* room) {
  Hstu const& a = task.a;
  int64_t const line = a.heads * a.valueSize, padding = padded(line);
  float *const x = room, *const gate = room + padding, *gamma = gate + padding, *beta = gamma + padding;
  if (a.gamma.data != nullptr && a.norm != Norm::kNone) copyRow(a.gamma, 0, a.gammaOfHeads ? a.heads : line, gamma);
  if (a.beta.data != nullptr && a.norm != Norm::kNone) copyRow(a.beta, 0, a.betaOfHeads ? a.heads : line, beta);
  for (int64_t row = task.row; row < task.end; ++row) {
    int64_t const at = (task.batch * a.length + row) * line, inTask = row - task.row;
    if (row >= task.limit) {
      clearRow(line, a.y, at);
      continue;
    }
    bool const* const begun = task.begun + inTask / kGroupRows * a.heads;
    float* const out = task.out + inTask * task.apart;
    float const weight = a.levels > 0              ? 1.F
                         : a.scale.data == nullptr ? a.inverseLength
                                                   : number(a.scale, task.batch * a.scaleBatch + row * a.scaleRow);
    for (int64_t head = 0; head < a.heads; ++head) {
      float* const from = out + head * task.width;
      for (int64_t j = 0; j < task.width; j += LANES) store(from + j, begun[head] ? load(from + j) * weight : Vector{});
      if (a.norm == Norm::kGroup) {
        // A head's part of gamma need not begin where a vector does; whole vectors of it stay inside the room.
        normalise(from, a.valueSize, Norm::kLayer, a.epsilon,
                  a.gamma.data != nullptr && !a.gammaOfHeads ? gamma + head * a.valueSize : nullptr,
                  a.beta.data != nullptr && !a.betaOfHeads && !a.gammaOfHeads ? beta + head * a.valueSize : nullptr);
        if (a.gammaOfHeads || a.betaOfHeads) {
          float const scale = a.gammaOfHeads ? gamma[head] : 1.F, shift = a.betaOfHeads ? beta[head] : 0.F;
          bool const each = a.beta.data != nullptr && !a.betaOfHeads;
          for (int64_t j = 0; j < task.width; j += LANES) {
            store(from + j, load(from + j) * scale + (each ? load(beta + head * a.valueSize + j) : all(shift)));
          }
        }
      }
    }
    float* y = out;
    if (task.apart != line) {
      for (int64_t head = 0; head < a.heads; ++head) {
        memcpy(x + head * a.valueSize, out + head * task.width, static_cast<size_t>(a.valueSize) * sizeof(float));
      }
      y = x;
    } else if (line % LANES != 0) {
      memcpy(x, out, static_cast<size_t>(line) * sizeof(float));
      y = x;
    }
    if (a.norm == Norm::kLayer) {
      normalise(y, line, Norm::kLayer, a.epsilon, a.gamma.data ? gamma : nullptr, a.beta.data ? beta : nullptr);
    }
    if (a.u.data != nullptr) {
      copyRow(a.u, at, line, gate);
      for (int64_t j = 0; j < line; j += LANES) {
        Vector const u = load(gate + j), by = a.gate == Gate::kNone ? u : a.gate == Gate::kSilu ? silu(u) : sigmoid(u);
        store(y + j, load(y + j) * by);
      }
    }
    if (y != out || !inPlace(a)) writeRow(y, line, a.y, at);
  }
}

void hstu(Hstu const& a, int64_t batch, int64_t row, int64_t end, float* scratch) {
  int64_t limit = a.length;
  if (a.lengths != nullptr) {
    int64_t const at = batch * a.lengthsBatch;
    int64_t const given =
        a.wideLengths ? static_cast<int64_t const*>(a.lengths)[at] : static_cast<int32_t const*>(a.lengths)[at];
    limit = given < 0 ? 0 : smaller(given, limit);
  }
  int64_t const width = padded(a.valueSize), line = a.heads * width, size = padded(a.size), rows = end - row;
  int64_t const states = padded(rows * a.heads), widest = size > width ? size : width;
  auto take = [&scratch](int64_t floats) {
    float* const taken = scratch;
    scratch += floats;
    return taken;
  };
  HstuTask task{a,       batch,   row,     end,     limit,   width,   line,    nullptr, nullptr, nullptr,
                nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  task.keys = take(kBlockKeys * size);
  task.values = take(kBlockKeys * width);
  task.rows = take(kBlockKeys * widest);
  task.scores = take(kGroupRows * kBlockKeys);
  task.bias = take(kGroupRows * kBlockKeys);
  task.mask = take(kGroupRows * kBlockKeys);
  task.q = take(kGroupRows * size);
  if (a.levels > 0) {
    task.total = take(states);
    task.highest = take(states);
    task.weight = take(states);
    task.partial = take(rows * line);
  }
  task.out = inPlace(a) ? static_cast<float*>(a.y.data) + (batch * a.length + row) * line : take(rows * line);
  float* const room = take(4 * padded(a.heads * a.valueSize) + LANES);
  task.begun = reinterpret_cast<bool*>(scratch);
  memset(task.begun, 0, static_cast<size_t>(groupsOf(rows) * a.heads));
  if (a.levels > 0) {
    runLevels(task);
  } else if (row < limit) {
    int64_t const last = a.causal ? smaller(end, limit) : limit;
    for (int64_t key = 0; key < last; key += kBlockKeys) addBlock(task, key, smaller(kBlockKeys, last - key), last, a.alpha);
  }
  finishRows(task, room);
}

// One extent for each group of rows and block of keys of a mask or a bias: one past the last column that has a weight, and for a
// mask whether all up to there are 1. So what is a triangle costs as little as `causal`, however it came to be.
void hstuExtents(Hstu const& a, bool ofBias, int64_t begin, int64_t end, uint8_t* extents) {
  Plane const& plane = ofBias ? a.bias : a.mask;
  int64_t const groups = plane.row == 0 ? 1 : groupsOf(a.length), blocks = blocksOf(a.length);
  int64_t const heads = plane.head == 0 ? 1 : a.heads;
  float const factor = a.biasInsideAlpha ? a.alpha : 1.F;
  float room[kGroupRows * kBlockKeys];
  for (int64_t i = begin; i < end; ++i) {
    int64_t const row = i % groups * kGroupRows, at = i / groups;
    int64_t const members = plane.row == 0 ? 1 : smaller(kGroupRows, a.length - row);
    for (int64_t block = 0; block < blocks; ++block) {
      int64_t const key = block * kBlockKeys, count = smaller(kBlockKeys, a.length - key);
      Integers some[kBlockKeys / LANES] = {}, ones[kBlockKeys / LANES];
      for (auto& part : ones) part = Integers{} - 1;
      for (int64_t r = 0; r < members; ++r) {
        int64_t apart = 0;
        float const* const line = tileOf<1>(plane, at / heads, at % heads, row + r, key, count, a.length, room, apart);
        for (int64_t j = 0; j < count; j += LANES) {
          Vector const x = load(line + j);
          some[j / LANES] |= ofBias ? ~((x * factor <= kNoWeight) & (x * factor >= -3.4028235e38F)) : x != 0.F;
          ones[j / LANES] &= x == 1.F;
        }
      }
      int64_t extent = count;
      while (extent > 0 && some[(extent - 1) / LANES][(extent - 1) % LANES] == 0) --extent;
      bool full = !ofBias;
      for (int64_t j = 0; j < extent; ++j) full = full && ones[j / LANES][j % LANES] != 0;
      extents[i * blocks + block] = static_cast<uint8_t>(extent | (full ? kAllOnes : 0));
    }
  }
}

float hstuSquare(Operand const& vectors, int64_t size, int64_t begin, int64_t end, float* scratch) {
  float most = 0;
  for (int64_t i = begin; i < end; ++i) {
    copyRow(vectors, i * size, size, scratch);
    float const square = product(scratch, scratch, size);
    most = square <= most ? most : square == square ? square : __builtin_inff();
  }
  return most;
}

}  // namespace
}  // namespace gr
