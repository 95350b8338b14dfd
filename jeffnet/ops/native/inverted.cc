// The first half of an inverted residual (a 1x1 convolution to more channels, then a depthwise one), or the whole of it, by
// panels of the widened channels: of the widened picture, the largest array of a network, only the rows of one panel under
// the depthwise kernel are in use, in the first cache.

#include "dense.h"
#include "row.h"

namespace jeffnet {
namespace {

constexpr int64_t kConvolved = 4096;  // values of the depthwise convolution that the last product takes at once

// A panel of the widened channels, and the rows of it that are kept: `taps` rows of one picture, with their padding.
struct Panel {
  int64_t channel, lanes, step;  // its first channel, how many there are, and with zeros up to whole vectors
  float* ring;
};

// What is computed, from checked buffers.
struct Inverse {
  int64_t height, width, depth, channels, taps, stride, top, left, wide, out_height, out_width;
  bool whole;
  const float* x;
  Product widen, narrow;
  Act act;
  const float *kernels, *biases;  // of the depthwise convolution, by panels
  float *out, *sums;              // without `narrow`: outputs, and their sums over each picture

  // Sets the padding of the kept rows, which are as wide as what the kernels reach, so that no output is at a border.
  void Clear(const Panel& panel) const {
    const int64_t right = wide - left - width;
    for (int64_t slot = 0; slot < taps; ++slot) {
      float* row = panel.ring + slot * wide * panel.step;
      std::fill_n(row, left * panel.step, 0.0f);
      std::fill_n(row + (left + width) * panel.step, right * panel.step, 0.0f);
    }
  }

  void Widen(const Panel& panel, int64_t picture, int64_t row) const {
    Product product = widen;
    product.columns = product.step = panel.step;
    product.weights += panel.channel * depth;
    product.bias += panel.channel;
    product.out = panel.ring + (row % taps * wide + left) * panel.step;
    Panels(product, {x + (picture * height + row) * width * depth, depth, 1, depth, 0}, 0, 1, 0, width);
  }

  // A vector of channels of a row of the depthwise convolution.
  void Convolve(const Panel& panel, int64_t y, int64_t vector, float* to, int64_t to_step) const {
    const int64_t first = y * stride - top, last = std::min(height, first + taps);
    const float* kernel = kernels + taps * taps * panel.channel + vector;
    Row<float> row({out_width, to_step, panel.step, panel.step, 0, stride, 1, taps, wide}, to);
    row.bias = biases + panel.channel + vector;
    row.act = act;
    for (int64_t i = std::max<int64_t>(0, -first); first + i < last; ++i)
      row.add(panel.ring + (first + i) % taps * wide * panel.step + vector, kernel + i * taps * panel.step);
    row.run();
  }

  // A row of the outputs, and of the sums; a vector that is not full goes through `scratch`.
  void Finish(const Panel& panel, int64_t picture, int64_t y, float* scratch) const {
    float* row = out + (picture * out_height + y) * out_width * channels + panel.channel;
    for (int64_t vector = 0; vector < panel.step; vector += kWidth) {
      const bool full = vector + kWidth <= panel.lanes;
      float* to = full ? row + vector : scratch;
      const int64_t to_step = full ? channels : kWidth;
      Convolve(panel, y, vector, to, to_step);
      float* total = sums + picture * Padded(channels) + panel.channel + vector;
      Floats sum = Load(total);
      for (int64_t at = 0; at < out_width; ++at) sum += Load(to + at * to_step);
      Store(total, sum);
      for (int64_t at = 0; !full && at < out_width; ++at)
        std::copy_n(to + at * to_step, panel.lanes - vector, row + vector + at * channels);
    }
  }

  // Adds the panel's share of `rows` rows of the outputs from `y` on.
  void Narrow(const Panel& panel, int64_t picture, int64_t y, int64_t rows, const float* convolved) const {
    Product product = narrow;
    product.skipped = panel.channel;
    product.accumulate = panel.channel > 0;
    if (product.accumulate) product.shortcut = nullptr;
    Panels(product, {convolved, panel.step, 1, panel.lanes, 0}, 0, CountPanels(narrow.columns),
           (picture * out_height + y) * out_width, rows * out_width);
  }

  // Rows `begin` to `end` - 1 of the outputs; `next` is the first row of the picture that is not kept yet.
  void Rows(const Panel& panel, int64_t picture, int64_t begin, int64_t end, int64_t next, float* convolved) const {
    const int64_t row_values = out_width * panel.step;
    int64_t waiting = 0;  // rows in `convolved`
    for (int64_t y = begin; y < end; ++y) {
      const int64_t first = y * stride - top, last = std::min(height, first + taps);
      for (next = std::max({next, first, int64_t{0}}); next < last; ++next) Widen(panel, picture, next);
      if (!whole) {
        Finish(panel, picture, y, convolved);
        continue;
      }
      for (int64_t vector = 0; vector < panel.step; vector += kWidth)
        Convolve(panel, y, vector, convolved + waiting * row_values + vector, panel.step);
      ++waiting;
      if (y + 1 < end && (waiting + 1) * row_values <= kConvolved) continue;
      Narrow(panel, picture, y + 1 - waiting, waiting, convolved);
      waiting = 0;
    }
  }
};

// For a whole block, `more` holds weights and bias of the last 1x1 convolution, and the shortcut, if any. Otherwise the
// outputs are those of the depthwise convolution, and `means` their means over each picture. A picture's work is divided into
// `parts`: a block's into bands of rows, whose neighbours both widen the rows at their border; otherwise panels are shared out.
ffi::Error Inverted(ffi::ThreadPool pool, F32 x, F32 expand, F32 expand_bias, F32 kernel, F32 bias, ffi::RemainingArgs more,
                    ffi::Result<F32> out, ffi::Result<F32> means, Numbers window, int64_t expand_act,
                    int64_t act, int64_t parts) {
  const auto shape = x.dimensions(), kernel_shape = kernel.dimensions(), out_shape = out->dimensions();
  if (shape.size() != 4 || kernel_shape.size() != 4 || out_shape.size() != 4 || window.size() != 3)
    return ffi::Error::InvalidArgument("inverted residual: four axes and three numbers of the window are needed");
  const int64_t height = shape[1], width = shape[2], depth = shape[3], channels = kernel_shape[3];
  const int64_t taps = kernel_shape[0], stride = window[0], top = window[1], left = window[2];
  const int64_t out_height = out_shape[1], out_width = out_shape[2];
  const bool whole = more.size() > 0;
  if (out_shape[0] != shape[0] || depth < 1 || channels < kWidth || taps < 1 || taps > kMostRows ||
      kernel_shape[1] != taps || kernel_shape[2] != 1 || stride < 1 || stride > taps || !IsPad(top) || !IsPad(left) ||
      parts < 1 || parts > kMostStep || !IsAct(expand_act) || !IsAct(act) || more.size() == 1 || more.size() > 3)
    return ffi::Error::InvalidArgument("inverted residual: outside the limits of the kernel");
  if (!IsPacked(expand, depth, channels) || !Holds(expand_bias, Padded(channels)) ||
      !Holds(bias, channels) || (!whole && (out_shape[3] != channels || !Holds(*means, shape[0] * channels))) ||
      (whole && !Holds(*means, 1)))
    return ffi::Error::InvalidArgument("inverted residual: the shapes do not belong together");
  float* mean = means->typed_data();
  if (Holds(*out, 0)) {
    std::fill_n(mean, means->element_count(), __builtin_nanf(""));  // means of nothing
    return ffi::Error::Success();
  }
  const int64_t wide = std::max((out_width - 1) * stride + taps, left + width);
  if (wide > kMostScratch / 4 / Padded(channels) / (taps + 1))
    return ffi::Error::InvalidArgument("inverted residual: the rows under a kernel are too large");
  const Product widen{depth, channels, 0, expand.typed_data(), expand_bias.typed_data(), nullptr, nullptr,
                      static_cast<Act>(expand_act)};
  Product narrow{};
  if (whole) {
    narrow.depth = channels;
    narrow.columns = narrow.step = out_shape[3];
    auto weights = more.get<F32>(0), added = more.get<F32>(1);
    if (!weights || !IsPacked(*weights, channels, narrow.columns) || !added || !Holds(*added, Padded(narrow.columns)))
      return ffi::Error::InvalidArgument("inverted residual: unfit weights of the last convolution");
    narrow.weights = weights->typed_data();
    narrow.bias = added->typed_data();
    if (more.size() > 2) {
      auto shortcut = more.get<F32>(2);
      if (!shortcut || !Holds(*shortcut, out->element_count()))
        return ffi::Error::InvalidArgument("inverted residual: unfit shortcut");
      narrow.shortcut = shortcut->typed_data();
    }
    narrow.out = out->typed_data();
  }
  // Kernel and bias by panels, with zeros for channels that are not there.
  Lines<float> kernels(taps * taps * Padded(channels), 0.0f), biases(Padded(channels), 0.0f);
  std::copy_n(bias.typed_data(), channels, biases.data());
  for (int64_t c = 0; c < channels; c += kPanel) {
    const int64_t lanes = std::min(kPanel, channels - c);
    for (int64_t tap = 0; tap < taps * taps; ++tap)
      std::copy_n(kernel.typed_data() + tap * channels + c, lanes, kernels.data() + taps * taps * c + tap * Padded(lanes));
  }
  Lines<float> sums(whole ? 0 : shape[0] * Padded(channels), 0.0f);
  const Inverse inverse{height, width, depth, channels, taps, stride, top, left, wide, out_height, out_width, whole,
                        x.typed_data(), widen, narrow, static_cast<Act>(act), kernels.data(), biases.data(),
                        out->typed_data(), sums.data()};
  const int64_t panels = CountPanels(channels), bands = whole ? parts : 1, shares = whole ? 1 : parts;
  // Every panel reads the pictures and, in a block, adds to the outputs: so many rows that both stay in the second cache.
  const int64_t row_bytes = 4 * (stride * width * depth + (whole ? out_width * narrow.columns : 0));
  const int64_t group = std::max<int64_t>(1, 2 * kGroupBytes / row_bytes);
  // A task has several small pictures, for which a panel's weights are read once.
  const int64_t most = std::max<int64_t>(1, shape[0] * parts / (2 * Threads(pool)));
  const int64_t together = parts > 1 ? 1 : std::clamp<int64_t>(group / out_height, 1, most);
  const int64_t sets = (shape[0] + together - 1) / together;
  Parallel(pool, sets * parts, [&](int64_t task) {
    const int64_t set = task / parts, band = whole ? task % parts : 0, share = whole ? 0 : task % parts;
    const int64_t first_picture = shape[0] * set / sets, last_picture = shape[0] * (set + 1) / sets;
    const int64_t begin = out_height * band / bands, end = out_height * (band + 1) / bands;
    const bool several = end - begin > group;  // then rows are kept for the next group
    static thread_local Lines<float> ring, convolved;  // widened rows; rows of the depthwise convolution
    const int64_t kept = taps * wide * (several ? Padded(channels) : std::min(kPanel, Padded(channels)));
    if (static_cast<int64_t>(ring.size()) < kept) ring.resize(kept);
    const int64_t room = std::max(kConvolved, out_width * kPanel);
    if (static_cast<int64_t>(convolved.size()) < room) convolved.resize(room);
    for (int64_t row = begin; row < end; row += group) {
      // Those above are kept from the group before.
      const int64_t next = row == begin ? 0 : std::clamp<int64_t>((row - 1) * stride - top + taps, 0, height);
      for (int64_t at = panels * share / shares; at < panels * (share + 1) / shares; ++at) {
        const int64_t c = at * kPanel, lanes = std::min(kPanel, channels - c);
        const Panel panel{c, lanes, Padded(lanes), ring.data() + (several ? taps * wide * c : 0)};
        for (int64_t picture = first_picture; picture < last_picture; ++picture) {
          if (row == begin) inverse.Clear(panel);
          inverse.Rows(panel, picture, row, std::min(end, row + group), next, convolved.data());
        }
      }
    }
  });
  if (whole) {
    mean[0] = 0.0f;
    return ffi::Error::Success();
  }
  const float factor = 1.0f / static_cast<float>(out_height * out_width);
  for (int64_t picture = 0; picture < shape[0]; ++picture)
    for (int64_t c = 0; c < channels; ++c) mean[picture * channels + c] = sums[picture * Padded(channels) + c] * factor;
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jeffnet_inverted, Caught<Inverted>::Call,
                              Bind().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().RemainingArgs()
                                  .Ret<F32>().Ret<F32>().Attr<Numbers>("window").Attr<int64_t>("expand_act")
                                  .Attr<int64_t>("act").Attr<int64_t>("parts"));

}  // namespace jeffnet
