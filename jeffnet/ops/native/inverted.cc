// The first half of an inverted residual (a 1x1 convolution to more channels, then a depthwise one), or the whole of it, by
// panels of the widened channels: of the widened picture, the largest array of a network, only the rows of one panel under
// the depthwise kernel are in use, in the first cache.

#include "dense.h"
#include "row.h"

namespace jeffnet {
namespace {

constexpr int64_t kConvolved = 4096;  // values of the depthwise convolution that the last product takes at once

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
  // Rows in the ring include their padding, so that no output is at a border.
  const int64_t wide = std::max((out_width - 1) * stride + taps, left + width), right = wide - left - width;
  if (wide > kMostScratch / 4 / Padded(channels) / (taps + 1))
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
  // Kernel and bias by panels, with zeros for channels that are not there.
  std::vector<float> kernels(taps * taps * Padded(channels), 0.0f), biases(Padded(channels), 0.0f);
  std::copy_n(bias.typed_data(), channels, biases.data());
  for (int64_t c = 0; c < channels; c += kPanel) {
    const int64_t lanes = std::min(kPanel, channels - c);
    for (int64_t tap = 0; tap < taps * taps; ++tap)
      std::copy_n(kernel.typed_data() + tap * channels + c, lanes, kernels.data() + taps * taps * c + tap * Padded(lanes));
  }
  const int64_t bands = whole ? parts : 1, shares = whole ? 1 : parts;
  std::vector<float> sums(whole ? 0 : shape[0] * Padded(channels), 0.0f);
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
    static thread_local std::vector<float> ring, convolved;  // widened rows; rows of the depthwise convolution
    const int64_t kept = taps * wide * (several ? Padded(channels) : std::min(kPanel, Padded(channels)));
    if (static_cast<int64_t>(ring.size()) < kept) ring.resize(kept);
    const int64_t room = std::max(kConvolved, out_width * kPanel);
    if (static_cast<int64_t>(convolved.size()) < room) convolved.resize(room);
    for (int64_t group_begin = begin; group_begin < end; group_begin += group) {
      const int64_t group_end = std::min(end, group_begin + group);
      for (int64_t panel = panels * share / shares; panel < panels * (share + 1) / shares; ++panel) {
        const int64_t c = panel * kPanel, lanes = std::min(kPanel, channels - c), step = Padded(lanes);
        float* slice = ring.data() + (several ? taps * wide * c : 0);
        Product widen_panel = widen;
        widen_panel.columns = step;
        widen_panel.weights += c * depth;
        widen_panel.bias += c;
        for (int64_t picture = first_picture; picture < last_picture; ++picture) {
          int64_t next;  // the first row not yet widened
          if (group_begin == begin) {
            next = 0;
            for (int64_t slot = 0; slot < taps; ++slot) {
              std::fill_n(slice + slot * wide * step, left * step, 0.0f);
              std::fill_n(slice + (slot * wide + left + width) * step, right * step, 0.0f);
            }
          } else {
            next = std::clamp<int64_t>((group_begin - 1) * stride - top + taps, 0, height);
          }
          int64_t waiting = 0;  // rows in `convolved`
          for (int64_t y = group_begin; y < group_end; ++y) {
            const int64_t first = y * stride - top, last = std::min(height, first + taps);
            for (next = std::max({next, first, int64_t{0}}); next < last; ++next) {
              widen_panel.out = slice + (next % taps * wide + left) * step;
              Panels(widen_panel, {x.typed_data() + (picture * height + next) * width * depth, depth, 1, depth, 0}, 0, 1, 0, width);
            }
            for (int64_t v = 0; v < step; v += kWidth) {
              const bool direct = !whole && v + kWidth <= lanes;
              float* to = convolved.data() + (whole ? waiting * out_width * step : 0) + v;
              if (direct) to = out->typed_data() + (picture * out_height + y) * out_width * channels + c + v;
              const int64_t out_step = direct ? channels : step;
              Row<float> row({out_width, out_step, step, step, 0, stride, 1, taps, wide}, to);
              row.bias = biases.data() + c + v;
              row.act = static_cast<Act>(act);
              for (int64_t i = std::max<int64_t>(0, -first); first + i < last; ++i)
                row.add(slice + (first + i) % taps * wide * step + v, kernels.data() + taps * taps * c + i * taps * step + v);
              row.run();
              if (whole) continue;
              float* total = sums.data() + picture * Padded(channels) + c + v;
              Floats sum = Load(total);
              for (int64_t at = 0; at < out_width; ++at) sum += Load(to + at * out_step);
              Store(total, sum);
              if (direct) continue;
              float* final = out->typed_data() + (picture * out_height + y) * out_width * channels + c + v;
              for (int64_t at = 0; at < out_width; ++at) std::copy_n(to + at * step, lanes - v, final + at * channels);
            }
            if (!whole) continue;
            ++waiting;
            if (y + 1 < group_end && (waiting + 1) * out_width * step <= kConvolved) continue;
            Product narrow_panel = narrow;
            narrow_panel.skipped = c;
            narrow_panel.accumulate = panel > 0;
            if (panel > 0) narrow_panel.shortcut = nullptr;
            Panels(narrow_panel, {convolved.data(), step, 1, lanes, 0}, 0, narrow_panels,
                   (picture * out_height + y + 1 - waiting) * out_width, waiting * out_width);
            waiting = 0;
          }
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
