// Depthwise convolution and its two gradients for pictures (N, H, W, C) and kernels (height, width, 1, C), on CPUs.
//
// All three are sums over kernel rows of a convolution along one row of the picture, so one function, `Row::run`, does
// the work: channels in vectors, a few neighbouring outputs at once to use each loaded value several times.

#include "row.h"

namespace jeffnet {

template <typename T, typename In, typename Out>
inline void Row<T, In, Out>::store(Out* to, Vector<T> sum) const {
  if constexpr (sizeof(T) == 4) {
    if (bias) sum = Activate<kAnyBf16<In, Out>>(act, sum + Load(bias));
  }
  Store(to, sum);
}

// `kTaps` and `kStride` are 0 where known only at run time.
template <typename T, typename In, typename Out>
template <int kTaps, int kStride, int kTile>
inline void Row<T, In, Out>::tile(int64_t o) const {
  const int64_t step = kStride ? kStride : stride;
  Vector<T> sums[kTile];
  Vector<T> first = {};
  if (bias) first = Load(bias);
#pragma GCC unroll 16
  for (int output = 0; output < kTile; ++output) sums[output] = first;
  for (int64_t row = 0; row < rows; ++row) {
    const In* line = in[row] + (start + o * step) * channels;
    const T* weights = kernel[row];
    if constexpr (kTaps > 0) {
      // Neighbouring outputs share values; each is loaded once.
      constexpr int kValues = (kTile - 1) * kStride + kTaps;
      Vector<T> values[kValues];
#pragma GCC unroll 32
      for (int at = 0; at < kValues; ++at) {
        values[at] = Load(line + at * channels);
#ifdef __AVX512F__
        // The compiler would load a value for each product, and there is a load for every product at most.
        if constexpr (kValues + kTile < 32) asm("" : "+v"(values[at]));
#endif
      }
#pragma GCC unroll 16
      for (int tap = 0; tap < kTaps; ++tap) {
        const Vector<T> weight = Load(weights + tap * kernel_step);
#pragma GCC unroll 16
        for (int output = 0; output < kTile; ++output) sums[output] += weight * values[output * kStride + tap];
      }
    } else {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const Vector<T> weight = Load(weights + tap * kernel_step);
        for (int output = 0; output < kTile; ++output)
          sums[output] += weight * Load(line + (output * step + tap * dilation) * channels);
      }
    }
  }
  const auto store_all = [&](auto act) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int output = 0; output < kTile; ++output)
      Store(out + (o + output) * out_step, Activate<kAnyBf16<In, Out>>(act.value, sums[output]));
  };
  if constexpr (sizeof(T) == 4) {
    WithAct(act, store_all);
  } else {
    store_all(std::integral_constant<Act, Act::kNone>{});
  }
}

// An output with taps outside the row.
template <typename T, typename In, typename Out>
void Row<T, In, Out>::border(int64_t o) const {
  Vector<T> sum = {};
  const int64_t position = start + o * stride;
  const int64_t first = position < 0 ? (-position + dilation - 1) / dilation : 0;
  const int64_t last = position >= width ? 0 : std::min(taps, (width - 1 - position) / dilation + 1);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t tap = first; tap < last; ++tap)
      sum += Load(kernel[row] + tap * kernel_step) * Load(in[row] + (position + tap * dilation) * channels);
  }
  store(out + o * out_step, sum);
}

template <typename T, typename In, typename Out>
template <int kTaps, int kStride>
void Row<T, In, Out>::run() const {
  constexpr int kTile = 8;
  // Outputs first .. last - 1 need no value outside the row.
  const int64_t reach = (taps - 1) * dilation;
  int64_t first = start >= 0 ? 0 : (-start + stride - 1) / stride;
  int64_t last = width - 1 - reach - start < 0 ? 0 : (width - 1 - reach - start) / stride + 1;
  first = std::min(first, count);
  last = std::max(first, std::min(last, count));
  int64_t o = 0;
  for (; o < first; ++o) border(o);
  // Pictures of a network are often 7 or 14 wide.
  if ((last - o) % 7 == 0 && last - o < 28) {
    for (; o < last; o += 7) tile<kTaps, kStride, 7>(o);
  }
  for (; o + kTile <= last; o += kTile) tile<kTaps, kStride, kTile>(o);
  for (; o + 4 <= last; o += 4) tile<kTaps, kStride, 4>(o);
  // The last few are computed with some of those before once more.
  if (o < last && last - first >= 4) tile<kTaps, kStride, 4>(last - 4), o = last;
  for (; o < last; ++o) tile<kTaps, kStride, 1>(o);
  for (; o < count; ++o) border(o);
}

template <typename T, typename In, typename Out>
void Row<T, In, Out>::run() const {
  if (dilation == 1 && sizeof(T) == 4 && stride == 1) {
    switch (taps) {
      case 1: return run<1, 1>();
      case 2: return run<2, 1>();
      case 3: return run<3, 1>();
      case 4: return run<4, 1>();
      case 5: return run<5, 1>();
      case 7: return run<7, 1>();
      case 9: return run<9, 1>();
      case 11: return run<11, 1>();
    }
  }
  if (dilation == 1 && sizeof(T) == 4 && stride == 2) {
    switch (taps) {
      case 3: return run<3, 2>();
      case 5: return run<5, 2>();
      case 7: return run<7, 2>();
      case 9: return run<9, 2>();
      case 11: return run<11, 2>();
    }
  }
  run<0, 0>();
}

template struct Row<float>;
template struct Row<float, Bf16, Bf16>;
template struct Row<float, float, Bf16>;
template struct Row<double>;

namespace {

struct Geometry {
  int64_t batch, height, width, channels, out_height, out_width, kernel_height, kernel_width;
  int64_t stride_y, stride_x, top, left, dilation_y, dilation_x;
  int64_t pixel;  // values from a pixel to the next, of which `channels` are convolved
};

int64_t Modulo(int64_t a, int64_t b) { return ((a % b) + b) % b; }

// What inference computes together with the convolution.
struct After {
  const float* bias = nullptr;
  Act act = Act::kNone;
  float* means = nullptr;  // of the outputs, over each picture

  template <typename In, typename Out>
  void apply(Row<float, In, Out>& row, int64_t channel) const {
    row.bias = bias ? bias + channel : nullptr;
    row.act = act;
  }
  void apply(Row<double>&, int64_t) const {}
};

constexpr int64_t kSmallBytes = 32 << 10;

// Small pictures: each vector of channels is copied with its padding, so that no output is at a border, and repeated reads
// come from the first cache.
template <typename T, typename In>
void ForwardSmall(ffi::ThreadPool& pool, const Geometry& g, int64_t tall, int64_t wide, const In* images, const T* kernel,
                  In* out, const After& after) {
  const int64_t lanes = kLanes<T>, blocks = (g.channels + lanes - 1) / lanes;
  const Walk walk{g.out_width, g.pixel, lanes, g.channels, 0, g.stride_x, g.dilation_x, g.kernel_width, wide};
  // Neighbouring vectors share cache lines: a thread takes several.
  const int64_t tasks = std::min(g.batch * blocks, 4 * Threads(pool) * g.batch);
  Parallel(pool, tasks, [&](int64_t task) {
    static thread_local Lines<T> padded;
    padded.assign(tall * wide * lanes, T(0));
    for (int64_t block = g.batch * blocks * task / tasks; block < g.batch * blocks * (task + 1) / tasks; ++block) {
      const int64_t picture = block / blocks, c = std::min(block % blocks * lanes, g.channels - lanes);
      for (int64_t y = std::max<int64_t>(0, -g.top); y < std::min(g.height, tall - g.top); ++y)
        for (int64_t x = std::max<int64_t>(0, -g.left); x < std::min(g.width, wide - g.left); ++x)
          Store(padded.data() + ((y + g.top) * wide + x + g.left) * lanes,
                Load(images + ((picture * g.height + y) * g.width + x) * g.pixel + c));
      In* to = out + picture * g.out_height * g.out_width * g.pixel + c;
      for (int64_t y = 0; y < g.out_height; ++y) {
        Row<T, T, In> row(walk, to + y * g.out_width * g.pixel);
        after.apply(row, c);
        for (int64_t i = 0; i < g.kernel_height; ++i)
          row.add(padded.data() + (y * g.stride_y + i * g.dilation_y) * wide * lanes, kernel + i * g.kernel_width * g.channels + c);
        row.run();
      }
      if constexpr (sizeof(T) == 4) {
        if (!after.means) continue;
        Vector<T> sum = {};
        for (int64_t at = 0; at < g.out_height * g.out_width; ++at)
          sum += Load(to + at * g.pixel);
        Store(after.means + picture * g.pixel + c, sum / static_cast<T>(g.out_height * g.out_width));
      }
    }
  });
}

template <typename T, typename In = T>
void Forward(ffi::ThreadPool& pool, const Geometry& g, const In* images, const T* kernel, In* out, const After& after = {}) {
  const int64_t tall = (g.out_height - 1) * g.stride_y + (g.kernel_height - 1) * g.dilation_y + 1;
  const int64_t wide = (g.out_width - 1) * g.stride_x + (g.kernel_width - 1) * g.dilation_x + 1;
  if (tall <= kSmallBytes && wide <= kSmallBytes && tall * wide * kVectorBytes <= kSmallBytes)
    return ForwardSmall<T, In>(pool, g, tall, wide, images, kernel, out, after);
  const Walk walk{g.out_width, g.pixel, g.pixel, g.channels, -g.left, g.stride_x, g.dilation_x, g.kernel_width, g.width};
  // No task crosses pictures, since each sums its rows for the mean of one.
  const int64_t bands = std::min(g.out_height, (4 * Threads(pool) + g.batch - 1) / g.batch);
  const int64_t tasks = g.batch * bands;
  const int64_t padded = Padded(g.channels);
  Lines<float> sums(after.means ? tasks * padded : 0, 0.0f);
  Parallel(pool, tasks, [&](int64_t task) {
    const int64_t picture = task / bands, band = task % bands;
    for (int64_t y = g.out_height * band / bands; y < g.out_height * (band + 1) / bands; ++y) {
      const int64_t line = picture * g.out_height + y;
      ForChannels<T>(g.channels, [&](int64_t c) {
        In* to = out + line * g.out_width * g.pixel + c;
        Row<T, In, In> row(walk, to);
        after.apply(row, c);
        for (int64_t i = 0; i < g.kernel_height; ++i) {
          const int64_t from = y * g.stride_y + i * g.dilation_y - g.top;
          if (from >= 0 && from < g.height)
            row.add(images + (picture * g.height + from) * g.width * g.pixel + c, kernel + i * g.kernel_width * g.channels + c);
        }
        row.run();
        if constexpr (sizeof(T) == 4) {
          if (!after.means) return;
          float* total = sums.data() + task * padded + Padded(c);
          Floats sum = Load(total);
          for (int64_t at = 0; at < g.out_width; ++at) sum += Load(to + at * g.pixel);
          Store(total, sum);
        }
      });
    }
  });
  if (!after.means) return;
  for (int64_t picture = 0; picture < g.batch; ++picture)
    // Channels of two blocks have the same sums in both.
    ForChannels<float>(g.channels, [&](int64_t c) {
      Floats sum = {};
      for (int64_t band = 0; band < bands; ++band) sum += Load(sums.data() + (picture * bands + band) * padded + Padded(c));
      Store(after.means + picture * g.pixel + c, sum / static_cast<float>(g.out_height * g.out_width));
    });
}

// Columns of one phase (their place modulo the stride) get every stride-th tap: a convolution of stride 1 along the row.
template <typename T>
void InputGradient(ffi::ThreadPool& pool, const Geometry& g, const T* gradient, const T* kernel, T* out) {
  const int64_t lines = g.batch * g.height;
  const int64_t tasks = std::min(lines, 4 * Threads(pool));
  Parallel(pool, tasks, [&](int64_t task) {
    for (int64_t line = lines * task / tasks; line < lines * (task + 1) / tasks; ++line) {
      const int64_t picture = line / g.height, y = line % g.height;
      ForChannels<T>(g.channels, [&](int64_t c) {
        for (int64_t phase = 0; phase < std::min(g.stride_x, g.width); ++phase) {
          // With a stride the dilation is 1 (`Call`).
          const int64_t tap = g.stride_x == 1 ? 0 : Modulo(phase + g.left, g.stride_x);
          const int64_t taps = tap < g.kernel_width ? (g.kernel_width - tap + g.stride_x - 1) / g.stride_x : 0;
          const int64_t last = std::max<int64_t>(0, taps - 1);
          const int64_t count = (g.width - phase + g.stride_x - 1) / g.stride_x;
          // A column of the picture at tap `tap` is exactly on output (phase + left - tap) / stride. Without taps there are
          // no rows, and the outputs are zeros.
          const int64_t start = (phase + g.left - tap) / g.stride_x - last * g.dilation_x;
          Row<T> row({count, g.stride_x * g.channels, g.channels, -g.stride_x * g.channels, start, 1, g.dilation_x, last + 1,
                      g.out_width},
                     out + (line * g.width + phase) * g.channels + c);
          for (int64_t i = 0; taps && i < g.kernel_height; ++i) {
            const int64_t from = y + g.top - i * g.dilation_y;
            if (from < 0 || from % g.stride_y || from / g.stride_y >= g.out_height) continue;
            row.add(gradient + (picture * g.out_height + from / g.stride_y) * g.out_width * g.channels + c,
                    kernel + (i * g.kernel_width + tap + last * g.stride_x) * g.channels + c);
          }
          row.run();
        }
      });
    }
  });
}

// sums[row][tap] += in[row][o * stride + tap] * gradient[o], over outputs of one row.
template <typename T, int kRows, int kTaps>
void Products(const T* const* in, int64_t stride, int64_t channels, const T* gradient, int64_t count, T* sums,
              const int64_t* sum_rows, int64_t lane_step) {
  Vector<T> total[kRows][kTaps];
#pragma GCC unroll 4
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 16
    for (int tap = 0; tap < kTaps; ++tap)
      total[row][tap] = Load(sums + (sum_rows[row] * kTaps + tap) * lane_step);
  for (int64_t o = 0; o < count; ++o) {
    const Vector<T> value = Load(gradient + o * channels);
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 16
      for (int tap = 0; tap < kTaps; ++tap)
        total[row][tap] += value * Load(in[row] + (o * stride + tap) * channels);
  }
#pragma GCC unroll 4
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 16
    for (int tap = 0; tap < kTaps; ++tap)
      Store(sums + (sum_rows[row] * kTaps + tap) * lane_step, total[row][tap]);
}

template <typename T, int kTaps>
void ProductsOfRows(const T* const* in, int64_t rows, int64_t stride, int64_t channels, const T* gradient, int64_t count,
                    T* sums, const int64_t* sum_rows, int64_t lane_step) {
  constexpr int kRows = kTaps <= 3 ? 3 : kTaps <= 9 ? 2 : 1;
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows)
    Products<T, kRows, kTaps>(in + row, stride, channels, gradient, count, sums, sum_rows + row, lane_step);
  for (; row < rows; ++row)
    Products<T, 1, kTaps>(in + row, stride, channels, gradient, count, sums, sum_rows + row, lane_step);
}

template <typename T>
void KernelGradient(ffi::ThreadPool& pool, const Geometry& g, const T* images, const T* gradient, T* out) {
  const int64_t lanes = kLanes<T>, blocks = (g.channels + lanes - 1) / lanes;
  const int64_t taps = g.kernel_height * g.kernel_width, size = taps * blocks * lanes;
  const int64_t lines = g.batch * g.out_height;
  const int64_t most = std::max<int64_t>(1, kMostSums / (size * static_cast<int64_t>(sizeof(T))));
  const int64_t tasks = std::min({Threads(pool), lines, most});
  Lines<T> sums(tasks * size, T(0));
  const int64_t reach = (g.kernel_width - 1) * g.dilation_x;
  int64_t first = std::min((g.left + g.stride_x - 1) / g.stride_x, g.out_width);
  int64_t last = g.width - 1 - reach + g.left < 0 ? 0 : (g.width - 1 - reach + g.left) / g.stride_x + 1;
  last = std::max(first, std::min(last, g.out_width));
  Parallel(pool, tasks, [&](int64_t task) {
    for (int64_t line = lines * task / tasks; line < lines * (task + 1) / tasks; ++line) {
      const int64_t picture = line / g.out_height, y = line % g.out_height;
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t c = std::min(block * lanes, g.channels - lanes);
        // The sums of a block are contiguous: they are read and written once a row.
        T* block_sums = sums.data() + task * size + block * taps * lanes;
        const T* value = gradient + line * g.out_width * g.channels + c;
        const T* in[kMostRows];
        int64_t sum_rows[kMostRows], rows = 0;
        for (int64_t i = 0; i < g.kernel_height; ++i) {
          const int64_t from = y * g.stride_y + i * g.dilation_y - g.top;
          if (from < 0 || from >= g.height) continue;
          in[rows] = images + (picture * g.height + from) * g.width * g.channels + c;
          sum_rows[rows++] = i;
        }
        auto plain = [&](int64_t from, int64_t to) {
          for (int64_t row = 0; row < rows; ++row)
            for (int64_t tap = 0; tap < g.kernel_width; ++tap) {
              T* sum = block_sums + (sum_rows[row] * g.kernel_width + tap) * lanes;
              Vector<T> total = Load(sum);
              for (int64_t o = from; o < to; ++o) {
                const int64_t at = o * g.stride_x + tap * g.dilation_x - g.left;
                if (at >= 0 && at < g.width)
                  total += Load(value + o * g.channels) * Load(in[row] + at * g.channels);
              }
              Store(sum, total);
            }
        };
        if (g.dilation_x != 1 || sizeof(T) != 4) {
          plain(0, g.out_width);
          continue;
        }
        plain(0, first);
        plain(last, g.out_width);
        if (first == last) continue;
        const T* inner[kMostRows];
        for (int64_t row = 0; row < rows; ++row) inner[row] = in[row] + (first * g.stride_x - g.left) * g.channels;
        const T* inner_value = value + first * g.channels;
        const int64_t count = last - first;
        auto products = [&](auto function) {
          function(inner, rows, g.stride_x, g.channels, inner_value, count, block_sums, sum_rows, lanes);
        };
        switch (g.kernel_width) {
          case 3: products(ProductsOfRows<T, 3>); break;
          case 5: products(ProductsOfRows<T, 5>); break;
          case 7: products(ProductsOfRows<T, 7>); break;
          case 9: products(ProductsOfRows<T, 9>); break;
          case 11: products(ProductsOfRows<T, 11>); break;
          default: plain(first, last);
        }
      }
    }
  });
  for (int64_t task = 1; task < tasks; ++task)
    for (int64_t at = 0; at < size; ++at) sums[at] += sums[task * size + at];
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t c = std::min(block * lanes, g.channels - lanes);
    for (int64_t tap = 0; tap < taps; ++tap)
      std::memcpy(out + tap * g.channels + c, sums.data() + (block * taps + tap) * lanes, lanes * sizeof(T));
  }
}

// ---------------------------------------------------------------------------------------------------------- interface

// The shapes of pictures and outputs come from the buffers that have them, operands or result.
ffi::ErrorOr<Geometry> MakeGeometry(ffi::AnyBuffer::Dimensions images, ffi::AnyBuffer::Dimensions outputs,
                                    ffi::AnyBuffer::Dimensions kernel, Numbers window, int64_t bytes) {
  if (images.size() != 4 || outputs.size() != 4 || kernel.size() != 4 || window.size() != 6)
    return ffi::Unexpected(ffi::Error::InvalidArgument("depthwise: four axes and six numbers of the window are needed"));
  Geometry g{images[0], images[1], images[2], kernel[3], outputs[1], outputs[2], kernel[0], kernel[1],
             window[0], window[1], window[2], window[3], window[4], window[5], images[3]};
  if (outputs[0] != g.batch || outputs[3] != g.pixel || kernel[2] != 1 || g.channels > g.pixel)
    return ffi::Unexpected(ffi::Error::InvalidArgument("depthwise: the shapes do not belong together"));
  if (g.channels < kVectorBytes / bytes || g.kernel_height > kMostRows || !IsStep(g.kernel_height) ||
      !IsStep(g.kernel_width) || !IsStep(g.stride_y) || !IsStep(g.stride_x) || !IsStep(g.dilation_y) ||
      !IsStep(g.dilation_x) || !IsPad(g.top) || !IsPad(g.left))
    return ffi::Unexpected(ffi::Error::InvalidArgument("depthwise: outside the limits of the kernels"));
  return g;
}

enum class Kind { kForward, kInputGradient, kKernelGradient };

template <Kind kind, typename T>
ffi::Error Compute(ffi::ThreadPool& pool, ffi::AnyBuffer& a, ffi::AnyBuffer& b, ffi::AnyBuffer& out, Numbers window) {
  const auto g = kind == Kind::kForward ? MakeGeometry(a.dimensions(), out.dimensions(), b.dimensions(), window, sizeof(T))
                 : kind == Kind::kInputGradient
                     ? MakeGeometry(out.dimensions(), a.dimensions(), b.dimensions(), window, sizeof(T))
                     : MakeGeometry(a.dimensions(), b.dimensions(), out.dimensions(), window, sizeof(T));
  if (!g) return g.error();
  if (g->channels != g->pixel) return ffi::Error::InvalidArgument("depthwise: the kernel has other channels");
  if (kind == Kind::kInputGradient && g->stride_x > 1 && g->dilation_x > 1)
    return ffi::Error::InvalidArgument("depthwise: no gradient of a convolution with strides and dilation");
  T* result = static_cast<T*>(out.untyped_data());
  if (Holds(a, 0) || Holds(b, 0) || Holds(out, 0)) {  // sums of nothing
    std::fill_n(result, out.element_count(), T(0));
    return ffi::Error::Success();
  }
  const T *first = static_cast<const T*>(a.untyped_data()), *second = static_cast<const T*>(b.untyped_data());
  if (kind == Kind::kForward) Forward<T>(pool, *g, first, second, result);
  if (kind == Kind::kInputGradient) InputGradient<T>(pool, *g, first, second, result);
  if (kind == Kind::kKernelGradient) KernelGradient<T>(pool, *g, first, second, result);
  return ffi::Error::Success();
}

template <Kind kind>
ffi::Error Call(ffi::ThreadPool pool, ffi::RunId run, ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::Result<ffi::AnyBuffer> out,
                Numbers window) {
  if (b.element_type() != a.element_type() || out->element_type() != a.element_type())
    return ffi::Error::InvalidArgument("depthwise: operands and result differ in type");
  if (kind == Kind::kForward) AdviseHugePages(out->untyped_data(), out->size_bytes(), run.run_id);
  switch (a.element_type()) {
    case ffi::F32: return Compute<kind, float>(pool, a, b, *out, window);
    case ffi::F64: return Compute<kind, double>(pool, a, b, *out, window);
    default: return ffi::Error::InvalidArgument("depthwise: float32 or float64");
  }
}

// `parts` holds a kernel and a bias for each share of the channels, one after another; `window` six numbers for each.
ffi::Error ForwardAct(ffi::ThreadPool pool, ffi::AnyBuffer images, ffi::RemainingArgs parts, ffi::Result<ffi::AnyBuffer> out,
                      ffi::Result<F32> means, Numbers window, int64_t act) {
  const size_t count = parts.size() / 2;
  if (parts.size() % 2 || count == 0 || window.size() != 6 * count || !IsAct(act))
    return ffi::Error::InvalidArgument("depthwise: kernels with biases, six numbers for each, and an activation are needed");
  if (images.element_type() != out->element_type() || !(Is<float>(images) || Is<Bf16>(images)))
    return ffi::Error::InvalidArgument("depthwise: pictures and outputs are both float32 or both bfloat16");
  struct Part {
    Geometry geometry;
    const float *kernel, *bias;
  };
  std::vector<Part> checked;
  int64_t channels = 0;
  for (size_t part = 0; part < count; ++part) {
    auto kernel = parts.get<F32>(2 * part), bias = parts.get<F32>(2 * part + 1);
    if (!kernel || !bias) return ffi::Error::InvalidArgument("depthwise: kernels and biases are float32");
    const auto g = MakeGeometry(images.dimensions(), out->dimensions(), kernel->dimensions(), Numbers(window.begin() + 6 * part, 6),
                                sizeof(float));
    if (!g) return g.error();
    if (!Holds(*bias, g->channels)) return ffi::Error::InvalidArgument("depthwise: unfit bias");
    checked.push_back({*g, kernel->typed_data(), bias->typed_data()});
    channels += g->channels;
  }
  const Geometry& all = checked[0].geometry;
  if (channels != all.pixel || !Holds(*means, all.batch * channels))
    return ffi::Error::InvalidArgument("depthwise: the kernels do not have the channels of the pictures");
  if (Holds(*out, 0)) {
    std::fill_n(means->typed_data(), means->element_count(), __builtin_nanf(""));  // means of nothing
    return ffi::Error::Success();
  }
  int64_t first = 0;
  for (const Part& part : checked) {
    const After after{part.bias, static_cast<Act>(act), means->typed_data() + first};
    if (Is<float>(images)) {
      Forward<float>(pool, part.geometry, Data<float>(images) + first, part.kernel, Data<float>(*out) + first, after);
    } else {
      Forward<float, Bf16>(pool, part.geometry, Data<Bf16>(images) + first, part.kernel, Data<Bf16>(*out) + first, after);
    }
    first += part.geometry.channels;
  }
  return ffi::Error::Success();
}

}  // namespace

#define JEFFNET_HANDLER(name, kind)                                                                                          \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, Caught<Call<kind>>::Call,                                                              \
                                Bind().Ctx<ffi::RunId>().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>()   \
                                    .Attr<Numbers>("window"))

JEFFNET_HANDLER(jeffnet_depthwise, Kind::kForward);
JEFFNET_HANDLER(jeffnet_depthwise_input_gradient, Kind::kInputGradient);
JEFFNET_HANDLER(jeffnet_depthwise_kernel_gradient, Kind::kKernelGradient);

XLA_FFI_DEFINE_HANDLER_SYMBOL(jeffnet_depthwise_act, Caught<ForwardAct>::Call,
                              Bind().Arg<ffi::AnyBuffer>().RemainingArgs().Ret<ffi::AnyBuffer>().Ret<F32>().Attr<Numbers>("window")
                                  .Attr<int64_t>("act"));

}  // namespace jeffnet

// The limits, for `limits.py`.
extern "C" int64_t jeffnet_least_channels(int64_t bytes) { return jeffnet::kVectorBytes / bytes; }
extern "C" int64_t jeffnet_most_rows() { return jeffnet::kMostRows; }
extern "C" int64_t jeffnet_most_step() { return jeffnet::kMostStep; }
extern "C" int64_t jeffnet_most_scratch() { return jeffnet::kMostScratch; }
