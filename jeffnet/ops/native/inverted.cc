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

// What is computed, from checked buffers. The widened picture is float32 whatever its input and the outputs are.
template <typename T>
struct Inverse {
  int64_t height, width, depth, channels, taps, stride, top, left, wide, out_height, out_width;
  bool whole;
  const T* x;
  Product<T, float> widen;
  Product<T, T> narrow;
  Act act;
  const float *kernels, *biases;  // of the depthwise convolution, by panels
  T* out;  // without `narrow`: outputs, and their sums over each picture
  float* sums;

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
    Product<T, float> product = widen;
    product.columns = product.step = panel.step;
    product.weights += panel.channel * depth;
    product.bias += panel.channel;
    product.out = panel.ring + (row % taps * wide + left) * panel.step;
    Panels(product, Values<T>{x + (picture * height + row) * width * depth, depth, 1, depth, 0}, 0, 1, 0, width);
  }

  // A vector of channels of a row of the depthwise convolution.
  void Convolve(const Panel& panel, int64_t y, int64_t vector, T* to, int64_t to_step) const {
    const int64_t first = y * stride - top, last = std::min(height, first + taps);
    const float* kernel = kernels + taps * taps * panel.channel + vector;
    Row<float, float, T> row({out_width, to_step, panel.step, panel.step, 0, stride, 1, taps, wide}, to);
    row.bias = biases + panel.channel + vector;
    row.act = act;
    for (int64_t i = std::max<int64_t>(0, -first); first + i < last; ++i)
      row.add(panel.ring + (first + i) % taps * wide * panel.step + vector, kernel + i * taps * panel.step);
    row.run();
  }

  // A row of the outputs, and of the sums; a vector that is not full goes through `scratch`.
  void Finish(const Panel& panel, int64_t picture, int64_t y, T* scratch) const {
    T* row = out + (picture * out_height + y) * out_width * channels + panel.channel;
    for (int64_t vector = 0; vector < panel.step; vector += kWidth) {
      const bool full = vector + kWidth <= panel.lanes;
      T* to = full ? row + vector : scratch;
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

  // Adds the panel's share of `rows` rows of the outputs from `y` on. `partial` has the sums of the panels before, like these
  // outputs.
  void Narrow(const Panel& panel, int64_t picture, int64_t y, int64_t rows, const T* convolved, float* partial) const {
    const auto add = [&](auto product) {
      product.skipped = panel.channel;
      product.sums = panel.channel > 0 ? partial : nullptr;
      Panels(product, Values<T>{convolved, panel.step, 1, panel.lanes, 0}, 0, CountPanels(narrow.columns), 0, rows * out_width);
    };
    const int64_t first = (picture * out_height + y) * out_width * narrow.columns;
    Product<T, T> product = narrow;
    product.out += first;
    if (product.shortcut) product.shortcut += first;
    if (panel.channel + panel.lanes == channels) return add(product);
    const int64_t columns = Padded(narrow.columns);
    add(Product<T, float>{narrow.depth, columns, columns, narrow.weights, narrow.bias, nullptr, partial, Act::kNone});
  }

  // Rows `begin` to `end` - 1 of the outputs; `next` is the first row of the picture that is not kept yet. `partial` has sums
  // of these outputs.
  void Rows(const Panel& panel, int64_t picture, int64_t begin, int64_t end, int64_t next, T* convolved, float* partial) const {
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
      const int64_t top = y + 1 - waiting;
      Narrow(panel, picture, top, waiting, convolved, partial + (top - begin) * out_width * Padded(narrow.columns));
      waiting = 0;
    }
  }
};

// For a whole block, `more` holds weights and bias of the last 1x1 convolution, and the shortcut, if any. Otherwise the
// outputs are those of the depthwise convolution, and `means` their means over each picture. A picture's work is divided into
// `parts`: a block's into bands of rows, whose neighbours both widen the rows at their border; otherwise panels are shared out.
template <typename T>
ffi::Error InvertedOf(ffi::ThreadPool& pool, ffi::AnyBuffer& x, ffi::AnyBuffer& expand, F32& expand_bias, F32& kernel, F32& bias,
                      ffi::RemainingArgs& more, ffi::AnyBuffer& out, float* mean, Numbers window, Act expand_act, Act act,
                      int64_t parts) {
  const auto shape = x.dimensions(), kernel_shape = kernel.dimensions(), out_shape = out.dimensions();
  const int64_t height = shape[1], width = shape[2], depth = shape[3], channels = kernel_shape[3];
  const int64_t taps = kernel_shape[0], stride = window[0], top = window[1], left = window[2];
  const int64_t out_height = out_shape[1], out_width = out_shape[2];
  const bool whole = more.size() > 0;
  if (!IsPacked<T>(expand, depth, channels) || depth % kAtOnce<T> || channels % kAtOnce<T>)
    return ffi::Error::InvalidArgument("inverted residual: the shapes do not belong together");
  const int64_t wide = std::max((out_width - 1) * stride + taps, left + width);
  if (wide > kMostScratch / 4 / Padded(channels) / (taps + 1))
    return ffi::Error::InvalidArgument("inverted residual: the rows under a kernel are too large");
  const Product<T, float> widen{depth, channels, 0, Data<T>(expand), expand_bias.typed_data(), nullptr, nullptr, expand_act};
  Product<T, T> narrow{};
  if (whole) {
    narrow.depth = channels;
    narrow.columns = narrow.step = out_shape[3];
    auto weights = more.get<ffi::AnyBuffer>(0);
    auto added = more.get<F32>(1);
    if (!weights || !IsPacked<T>(*weights, channels, narrow.columns) || !added || !Holds(*added, Padded(narrow.columns)))
      return ffi::Error::InvalidArgument("inverted residual: unfit weights of the last convolution");
    narrow.weights = Data<T>(*weights);
    narrow.bias = added->typed_data();
    if (more.size() > 2) {
      auto shortcut = more.get<ffi::AnyBuffer>(2);
      if (!shortcut || !Is<T>(*shortcut) || !Holds(*shortcut, out.element_count()))
        return ffi::Error::InvalidArgument("inverted residual: unfit shortcut");
      narrow.shortcut = Data<T>(*shortcut);
    }
    narrow.out = Data<T>(out);
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
  const Inverse<T> inverse{height, width, depth, channels, taps, stride, top, left, wide, out_height, out_width, whole,
                           Data<T>(x), widen, narrow, act, kernels.data(), biases.data(), Data<T>(out), sums.data()};
  const int64_t panels = CountPanels(channels), bands = whole ? parts : 1, shares = whole ? 1 : parts;
  // Every panel reads the pictures and, in a block, adds to the outputs: so many rows that both stay in the second cache.
  const int64_t row_bytes = sizeof(T) * stride * width * depth + 4 * (whole ? out_width * narrow.columns : 0);
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
    static thread_local Lines<float> ring;      // widened rows
    static thread_local Lines<T> convolved;     // rows of the depthwise convolution
    static thread_local Lines<float> partial;   // sums of the outputs of a group
    const auto reserve = [](auto& lines, int64_t count) {
      if (static_cast<int64_t>(lines.size()) < count) lines.resize(count);
    };
    const int64_t summed = std::min(group, end - begin) * out_width * Padded(narrow.columns);  // of one picture
    reserve(ring, taps * wide * (several ? Padded(channels) : std::min(kPanel, Padded(channels))));
    reserve(convolved, std::max(kConvolved, out_width * kPanel));
    if (whole) reserve(partial, (last_picture - first_picture) * summed);
    for (int64_t row = begin; row < end; row += group) {
      // Those above are kept from the group before.
      const int64_t next = row == begin ? 0 : std::clamp<int64_t>((row - 1) * stride - top + taps, 0, height);
      for (int64_t at = panels * share / shares; at < panels * (share + 1) / shares; ++at) {
        const int64_t c = at * kPanel, lanes = std::min(kPanel, channels - c);
        const Panel panel{c, lanes, Padded(lanes), ring.data() + (several ? taps * wide * c : 0)};
        for (int64_t picture = first_picture; picture < last_picture; ++picture) {
          if (row == begin) inverse.Clear(panel);
          inverse.Rows(panel, picture, row, std::min(end, row + group), next, convolved.data(),
                       partial.data() + (picture - first_picture) * summed);
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

ffi::Error Inverted(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer expand, F32 expand_bias, F32 kernel, F32 bias,
                    ffi::RemainingArgs more, ffi::Result<ffi::AnyBuffer> out, ffi::Result<F32> means, Numbers window,
                    int64_t expand_act, int64_t act, int64_t parts) {
  const auto shape = x.dimensions(), kernel_shape = kernel.dimensions(), out_shape = out->dimensions();
  if (shape.size() != 4 || kernel_shape.size() != 4 || out_shape.size() != 4 || window.size() != 3)
    return ffi::Error::InvalidArgument("inverted residual: four axes and three numbers of the window are needed");
  const int64_t taps = kernel_shape[0], channels = kernel_shape[3], stride = window[0];
  const bool whole = more.size() > 0;
  if (out_shape[0] != shape[0] || shape[3] < 1 || channels < kWidth || taps < 1 || taps > kMostRows || kernel_shape[1] != taps ||
      kernel_shape[2] != 1 || stride < 1 || stride > taps || !IsPad(window[1]) || !IsPad(window[2]) || parts < 1 ||
      parts > kMostStep || !IsAct(expand_act) || !IsAct(act) || more.size() == 1 || more.size() > 3)
    return ffi::Error::InvalidArgument("inverted residual: outside the limits of the kernel");
  if (x.element_type() != out->element_type() || !(Is<float>(x) || Is<Bf16>(x)))
    return ffi::Error::InvalidArgument("inverted residual: pictures and outputs are both float32 or both bfloat16");
  if (!Holds(expand_bias, Padded(channels)) || !Holds(bias, channels) ||
      (whole ? !Holds(*means, 1) : out_shape[3] != channels || !Holds(*means, shape[0] * channels)))
    return ffi::Error::InvalidArgument("inverted residual: the shapes do not belong together");
  if (Holds(*out, 0)) {
    std::fill_n(means->typed_data(), means->element_count(), __builtin_nanf(""));  // means of nothing
    return ffi::Error::Success();
  }
  const auto compute = Is<float>(x) ? InvertedOf<float> : InvertedOf<Bf16>;
  return compute(pool, x, expand, expand_bias, kernel, bias, more, *out, means->typed_data(), window,
                 static_cast<Act>(expand_act), static_cast<Act>(act), parts);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jeffnet_inverted, Caught<Inverted>::Call,
                              Bind().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Arg<F32>().Arg<F32>().Arg<F32>()
                                  .RemainingArgs().Ret<ffi::AnyBuffer>().Ret<F32>().Attr<Numbers>("window")
                                  .Attr<int64_t>("expand_act").Attr<int64_t>("act").Attr<int64_t>("parts"));

}  // namespace jeffnet
