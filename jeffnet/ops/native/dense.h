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

// Whether a buffer is a packed kernel for values of this type.
template <typename In>
bool IsPacked(const ffi::AnyBuffer& weights, int64_t depth, int64_t columns) {
  const int64_t count = weights.element_count(), padded = Padded(columns);
  return Is<In>(weights) && count % padded == 0 && count / padded == depth;
}

inline int64_t CountPanels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// Of values `In`, with float32 sums, to outputs `Out`.
template <typename In, typename Out>
struct Product {
  int64_t depth, columns;
  int64_t step;         // values from a row of outputs to the next
  const In* weights;    // packed
  const float* bias;    // padded to whole vectors
  const Out* shortcut;  // like the outputs, or null
  Out* out;
  Act act;
  int64_t skipped = 0;          // rows of the weights before those that are used
  const float* sums = nullptr;  // to be added to instead of to the bias, padded to whole vectors
};

// The values that some outputs read: each output `count` stretches of `depth` values, `apart` from each other; those of the
// next output are `step` further. A stretch of bfloat16 has an even number.
template <typename In>
struct Values {
  const In* first;
  int64_t step, count, depth, apart;
};

// Computes `rows` outputs from `row` on, by panels `first` to `last` - 1.
template <typename In, typename Out>
void Panels(const Product<In, Out>& p, const Values<In>& a, int64_t first, int64_t last, int64_t row, int64_t rows);

}  // namespace jeffnet

#endif  // JEFFNET_DENSE_H_
