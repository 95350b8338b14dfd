// A depthwise convolution along one row of a picture.

#ifndef JEFFNET_ROW_H_
#define JEFFNET_ROW_H_

#include "common.h"

namespace jeffnet {

constexpr int64_t kMostRows = 32;  // kernel rows

// How a kernel moves along a row of a picture.
struct Walk {
  int64_t count;        // outputs
  int64_t out_step;     // values between outputs
  int64_t channels;     // values between neighbours of the input
  int64_t kernel_step;  // values between taps
  int64_t start, stride, dilation, taps, width;
};

// One row of outputs: out[o] = sum over rows and taps of in[row][start + o * stride + tap * dilation] * kernel[row][tap].
// Pointers are to the first channel of the block; positions outside [0, width) count as 0. The arithmetic is in `T`.
template <typename T, typename In = T, typename Out = T>
struct Row : Walk {
  Out* out;
  const T* bias = nullptr;  // with it comes the activation
  Act act = Act::kNone;
  int64_t rows = 0;
  const In* in[kMostRows];
  const T* kernel[kMostRows];

  Row(const Walk& walk, Out* out) : Walk(walk), out(out) {}

  void add(const In* values, const T* weights) {
    in[rows] = values;
    kernel[rows++] = weights;
  }

  void run() const;

 private:
  void store(Out* to, Vector<T> sum) const;
  void border(int64_t o) const;
  template <int kTaps, int kStride, int kTile>
  void tile(int64_t o) const;
  template <int kTaps, int kStride>
  void run() const;
};

// Calls `block(first channel)` for blocks of whole vectors; the last may overlap the one before.
template <typename T, typename Block>
void ForChannels(int64_t channels, const Block& block) {
  for (int64_t first = 0; first < channels; first += kLanes<T>) block(std::min(first, channels - kLanes<T>));
}

}  // namespace jeffnet

#endif  // JEFFNET_ROW_H_
