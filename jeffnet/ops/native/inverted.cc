// The first half of an inverted residual (a 1x1 convolution to more channels, then a depthwise one), or the whole of it, row
// by row: of the widened picture, the largest array of a network, only the rows under the depthwise kernel are kept, in the
// second cache.

#include "dense.h"
#include "row.h"

namespace jeffnet {
namespace {

// For a whole block, `more` holds weights and bias of the last 1x1 convolution, and the shortcut, if any. Otherwise the
// outputs are those of the depthwise convolution, and `means` their means over each picture.
ffi::Error Inverted(ffi::ThreadPool pool, F32 x, F32 expand, F32 expand_bias, F32 kernel, F32 bias, ffi::RemainingArgs more,
                    ffi::Result<F32> out, ffi::Result<F32> means, Numbers window, int64_t expand_act,
                    int64_t act, int64_t bands) {
  const auto shape = x.dimensions(), kernel_shape = kernel.dimensions(), out_shape = out->dimensions();
  if (shape.size() != 4 || kernel_shape.size() != 4 || out_shape.size() != 4 || window.size() != 3)
    return ffi::Error::InvalidArgument("inverted residual: four axes and three numbers of the window are needed");
  const int64_t height = shape[1], width = shape[2], depth = shape[3], channels = kernel_shape[3];
  const int64_t taps = kernel_shape[0], stride = window[0], top = window[1], left = window[2];
  const int64_t out_height = out_shape[1], out_width = out_shape[2];
  const bool whole = more.size() > 0;
  if (out_shape[0] != shape[0] || depth < 1 || channels < kWidth || taps < 1 || taps > kMostRows ||
      kernel_shape[1] != taps || kernel_shape[2] != 1 || stride < 1 || stride > taps || !IsPad(top) || !IsPad(left) ||
      bands < 1 || bands > kMostStep || !IsAct(expand_act) || !IsAct(act) || more.size() == 1 || more.size() > 3)
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
  // Rows in the ring include their padding, so that no output is at a border.
  const int64_t wide = std::max((out_width - 1) * stride + taps, left + width), right = wide - left - width;
  if (wide > kMostScratch / 4 / channels / (taps + 1))
    return ffi::Error::InvalidArgument("inverted residual: the rows under a kernel are too large");
  const Product widen{depth, channels, expand.typed_data(), expand_bias.typed_data(), nullptr, nullptr,
                      static_cast<Act>(expand_act)};
  Product narrow{};
  const int64_t panels = CountPanels(channels);
  int64_t narrow_panels = 0;
  if (whole) {
    narrow.depth = channels;
    narrow.columns = out_shape[3];
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
    narrow_panels = CountPanels(narrow.columns);
  }
  const Walk walk{out_width, channels, channels, channels, 0, stride, 1, taps, wide};
  const int64_t tasks = shape[0] * bands;
  std::vector<float> sums(whole ? 0 : tasks * channels, 0.0f);
  Parallel(pool, tasks, [&](int64_t task) {
    const int64_t picture = task / bands, band = task % bands;
    static thread_local std::vector<float> ring, convolved;  // widened rows; one row of the depthwise convolution
    if (static_cast<int64_t>(ring.size()) < taps * wide * channels) ring.resize(taps * wide * channels);
    for (int64_t slot = 0; slot < taps; ++slot) {
      float* from = ring.data() + slot * wide * channels;
      std::fill_n(from, left * channels, 0.0f);
      std::fill_n(from + (left + width) * channels, right * channels, 0.0f);
    }
    if (whole && static_cast<int64_t>(convolved.size()) < out_width * channels) convolved.resize(out_width * channels);
    const int64_t end = out_height * (band + 1) / bands;
    int64_t next = std::max<int64_t>(0, out_height * band / bands * stride - top);  // the first row not yet widened
    for (int64_t y = out_height * band / bands; y < end; ++y) {
      const int64_t first = y * stride - top, last = std::min(height, first + taps);
      next = std::max(next, std::max<int64_t>(0, first));
      while (next < last) {
        Product row = widen;
        row.out = ring.data() + (next % taps * wide + left) * channels;
        Panels(row, {x.typed_data() + (picture * height + next) * width * depth, depth, 1, depth, 0}, 0, panels, 0, width);
        ++next;
      }
      float* to = whole ? convolved.data() : out->typed_data() + (picture * out_height + y) * out_width * channels;
      ForChannels<float>(channels, [&](int64_t c) {
        Row<float> row(walk, to + c);
        row.bias = bias.typed_data() + c;
        row.act = static_cast<Act>(act);
        for (int64_t i = std::max<int64_t>(0, -first); first + i < last; ++i)
          row.add(ring.data() + (first + i) % taps * wide * channels + c, kernel.typed_data() + i * taps * channels + c);
        row.run();
      });
      if (whole) {
        Panels(narrow, {convolved.data(), channels, 1, channels, 0}, 0, narrow_panels, (picture * out_height + y) * out_width, out_width);
      } else {
        float* task_sums = sums.data() + task * channels;
        for (int64_t at = 0; at < out_width; ++at)
          for (int64_t c = 0; c < channels; ++c) task_sums[c] += to[at * channels + c];
      }
    }
  });
  if (whole) {
    mean[0] = 0.0f;
    return ffi::Error::Success();
  }
  const float share = 1.0f / static_cast<float>(out_height * out_width);
  for (int64_t picture = 0; picture < shape[0]; ++picture)
    for (int64_t c = 0; c < channels; ++c) {
      float sum = 0.0f;
      for (int64_t band = 0; band < bands; ++band) sum += sums[(picture * bands + band) * channels + c];
      mean[picture * channels + c] = sum * share;
    }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jeffnet_inverted, Caught<Inverted>::Call,
                              Bind().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().RemainingArgs()
                                  .Ret<F32>().Ret<F32>().Attr<Numbers>("window").Attr<int64_t>("expand_act")
                                  .Attr<int64_t>("act").Attr<int64_t>("bands"));

}  // namespace jeffnet
