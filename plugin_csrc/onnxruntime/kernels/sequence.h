// SequenceRecommendationInteraction. Items that the mask leaves out are not read.
#pragma once

#include "products.h"

namespace gr {
namespace {

int64_t sequenceScratch(Sequence const& a) {
  int64_t const size = padded(a.size), positions = padded(a.positions);
  return 5 * size + 4 * positions + kBlockKeys * 2 * size + kGroupRows * (size + kBlockKeys + positions);
}

INLINE bool isItem(Sequence const& a, int64_t at) { return a.mask.data == nullptr || number(a.mask, at) != 0.F; }

// sum of weights * items, divided by the sum of the weights where they are normalized
INLINE void interest(Sequence const& a, float const* weights, float const* kept, int64_t batch, float* total, float* room,
                     Target const& to) {
  int64_t const size = padded(a.size), start = batch * a.positions;
  memset(total, 0, static_cast<size_t>(size) * sizeof(float));
  float weight = 0;
  for (int64_t s = 0; s < a.positions; ++s) {
    if (kept[s] == 0.F) continue;
    weight += weights[s];
    copyRow(a.items, (start + s) * a.size, a.size, room);
    for (int64_t i = 0; i < size; i += LANES) store(total + i, load(total + i) + load(room + i) * weights[s]);
  }
  if (a.normalize) {
    float const factor = weight == 0.F ? 0.F : 1.F / weight;
    for (int64_t i = 0; i < size; i += LANES) store(total + i, weight == 0.F ? Vector{} : load(total + i) * factor);
  }
  writeRow(total, a.size, to, batch * a.size);
}

void interests(Sequence const& a, int64_t batch, float* scratch) {
  int64_t const size = padded(a.size), positions = padded(a.positions), start = batch * a.positions;
  float *const user = scratch, *const total = user + size, *const room = total + size;
  float *const kept = room + size, *const time = kept + positions, *const weights = time + positions,
               *const scores = weights + positions;
  int64_t count = 0, last = -1;
  for (int64_t s = 0; s < a.positions; ++s) {
    kept[s] = isItem(a, start + s) ? 1.F : 0.F;
    time[s] = a.timeWeights.data == nullptr ? 1.F : number(a.timeWeights, start + s);
    if (kept[s] != 0.F) {
      ++count;
      last = s;
    }
  }
  if (a.scores.data != nullptr) {
    copyRow(a.user, batch * a.size, a.size, user);
    for (int64_t s = 0; s < a.positions; ++s) {
      scores[s] = 0;
      if (kept[s] == 0.F) continue;
      copyRow(a.items, (start + s) * a.size, a.size, room);
      scores[s] = product(room, user, a.size) * time[s];
    }
    writeRow(scores, a.positions, a.scores, start);
  }
  if (a.longTerm.data != nullptr) {
    for (int64_t s = 0; s < positions; ++s) weights[s] = -0.1F * static_cast<float>(last - s);
    for (int64_t s = 0; s < positions; s += LANES) store(weights + s, exponential(load(weights + s)) * 0.5F + 0.5F);
    for (int64_t s = 0; s < a.positions; ++s) weights[s] *= time[s];
    interest(a, weights, kept, batch, total, room, a.longTerm);
  }
  if (a.shortTerm.data != nullptr) {
    int64_t const recent = smaller(count, a.shortWindow);
    int64_t seen = 0;
    for (int64_t s = 0; s < a.positions; ++s) {
      if (kept[s] == 0.F) continue;
      int64_t const rank = seen++ - (count - recent);
      if (rank < 0) kept[s] = 0;
      weights[s] = (1.F + 0.1F * static_cast<float>(rank)) * time[s];
    }
    interest(a, weights, kept, batch, total, room, a.shortTerm);
  }
}

struct Products {
  float const *rows, *keys;
  int64_t size, columns;
  float* scores;

  template <int32_t M>
  INLINE void run() const {
    scoresOf<M>(rows, padded(size), keys, size, columns, scores);
  }
};

// Rows [row, end) of one sample; row is a multiple of kGroupRows. Blocks of items outside, groups of rows inside.
void cooccurrence(Sequence const& a, int64_t batch, int64_t row, int64_t end, float* scratch) {
  int64_t const size = padded(a.size), positions = padded(a.positions), start = batch * a.positions;
  float *const packed = scratch, *const block = packed + kBlockKeys * size, *const rows = block + kBlockKeys * size;
  float *const scores = rows + kGroupRows * size, *const near = scores + kGroupRows * kBlockKeys;
  for (int64_t s = 0; s < positions; ++s) near[s] = -a.decay * static_cast<float>(s);
  for (int64_t s = 0; s < positions; s += LANES) store(near + s, exponential(load(near + s)));
  auto copyItem = [&](int64_t at, float* to) {
    if (isItem(a, start + at)) {
      copyRow(a.items, (start + at) * a.size, a.size, to);
    } else {
      memset(to, 0, static_cast<size_t>(size) * sizeof(float));
    }
  };
  for (int64_t key = row / kBlockKeys * kBlockKeys; key < a.positions; key += kBlockKeys) {
    int64_t const count = smaller(kBlockKeys, a.positions - key);
    for (int64_t j = 0; j < count; ++j) copyItem(key + j, block + j * size);
    packKeys(block, size, count, a.size, packed);
    for (int64_t first = row; first < end && first < key + count - 1; first += kGroupRows) {
      int64_t const members = smaller(kGroupRows, end - first);
      for (int64_t i = 0; i < members; ++i) copyItem(first + i, rows + i * size);
      forRows(members, Products{rows, packed, a.size, count, scores});
      for (int64_t i = 0; i < members; ++i) {
        float* const line = scores + i * kBlockKeys;
        bool const seen = isItem(a, start + first + i);
        for (int64_t j = 0; j < count; ++j) {
          int64_t const distance = key + j - first - i;
          line[j] = distance > 0 && seen && isItem(a, start + key + j) ? line[j] * near[distance] : 0.F;
        }
        writeRow(line, count, a.cooccurrence, (start + first + i) * a.positions + key);
      }
    }
  }
  // What is left of the first block that a row sees.
  for (int64_t i = row; i < end; ++i) {
    int64_t const left = row / kBlockKeys * kBlockKeys;
    clearRow(left, a.cooccurrence, (start + i) * a.positions);
    for (int64_t key = left; key < a.positions; key += kBlockKeys) {
      int64_t const count = smaller(kBlockKeys, a.positions - key), group = row + (i - row) / kGroupRows * kGroupRows;
      if (group >= key + count - 1) clearRow(count, a.cooccurrence, (start + i) * a.positions + key);
    }
  }
}

}  // namespace
}  // namespace gr
