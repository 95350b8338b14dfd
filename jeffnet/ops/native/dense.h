// Rows of a matrix product by panels of packed weights, with bias, activation and shortcut.

#ifndef JEFFNET_DENSE_H_
#define JEFFNET_DENSE_H_

#include "common.h"

namespace jeffnet {

// A block of sums, rows by vectors, fills the registers, of which x86 processors have 16 before AVX-512.
#if defined(__x86_64__) && !defined(__AVX512F__)
constexpr int kBlockRows = 6, kPanelVectors = 2;
#else
constexpr int kBlockRows = 8, kPanelVectors = 3;
#endif
constexpr int64_t kPanel = kPanelVectors * kWidth;  // columns
constexpr int64_t kGroupBytes = 192 << 10;  // rows of one task, which should stay in the second cache

// Whether a buffer has the size of a packed kernel.
template <typename Buffer>
bool IsPacked(Buffer& weights, int64_t depth, int64_t columns) {
  const int64_t count = weights.element_count(), padded = Padded(columns);
  return count % padded == 0 && count / padded == depth;
}

inline int64_t CountPanels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

struct Product {
  int64_t depth, columns;
  int64_t step;          // values from a row of outputs to the next
  const float* weights;  // packed
  const float* bias;     // padded to whole vectors
  const float* shortcut; // like the outputs, or null
  float* out;
  Act act;
  int64_t skipped = 0;      // rows of the weights before those that are used
  bool accumulate = false;  // add to `out` instead of to the bias
};

// The values that some outputs read: each output `count` stretches of `depth` values, `apart` from each other; those of the
// next output are `step` further.
struct Values {
  const float* first;
  int64_t step, count, depth, apart;
};

// Computes `rows` outputs from `row` on, by panels `first` to `last` - 1.
void Panels(const Product& p, const Values& a, int64_t first, int64_t last, int64_t row, int64_t rows);

}  // namespace jeffnet

#endif  // JEFFNET_DENSE_H_
