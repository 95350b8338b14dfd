// Convolution of all channels for inference, with the bias, activation and shortcut after it.
//
// Outputs are rows (pixels) by columns (channels), a matrix product. Weights come packed into panels of columns, so that
// a panel is read in order; a block of rows and one panel meet in registers. For each kernel row, the values under a kernel
// are one stretch of memory, except at borders; there, and where a gate multiplies them, they are gathered first.

#include "dense.h"

namespace jeffnet {
namespace {

// Activation and shortcut of sums in panels: a function of its own, since in each `Block` it would take a minute to compile.
template <int kVectors, typename In, typename Out>
__attribute__((noinline)) void Finish(const Product<In, Out>& p, const float* sums, int64_t row, int64_t rows, int64_t column) {
  const int64_t step = kVectors * kWidth, last = std::min(step, p.columns - column);
  const bool whole = last == step;
  Out* out = p.out + row * p.step + column;
  const Out* shortcut = p.shortcut ? p.shortcut + row * p.step + column : nullptr;
  WithAct(p.act, [&](auto act) {
    for (int64_t r = 0; r < rows; ++r, sums += step, out += p.step) {
#pragma GCC unroll 3
      for (int64_t v = 0; v < step; v += kWidth) {
        const Floats value = Activate<kAnyBf16<In, Out>>(act.value, Load(sums + v));
        if (whole || v + kWidth < last) {
          Store(out + v, shortcut ? value + Load(shortcut + v) : value);
        } else if (v < last) {
          StoreFirst(out + v, shortcut ? value + LoadFirst(shortcut + v, last - v) : value, last - v);
        }
      }
      if (shortcut) shortcut += p.step;
    }
  });
}

// Outputs from `row` on by one panel.
template <int kRows, int kVectors, typename In, typename Out>
void Block(const Product<In, Out>& p, const Values<In>& a, const In* panel, int64_t row, int64_t column) {
  constexpr int64_t kStep = kVectors * kWidth, kDeep = kAtOnce<In>;
  const bool whole = p.columns - column >= kStep;
  Floats sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      if (!p.sums) {
        sums[r][v] = Load(p.bias + column + v * kWidth);
      } else {
        sums[r][v] = Load(p.sums + (row + r) * Padded(p.columns) + column + v * kWidth);
      }
    }
  for (int64_t stretch = 0; stretch < a.count; ++stretch) {
    const In* values = a.first + stretch * a.apart;
    for (int64_t k = 0; k < a.depth; k += kDeep, panel += kDeep * kStep) {
      decltype(LoadWeights(panel)) weights[kVectors];
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) weights[v] = LoadWeights(panel + kDeep * v * kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) sums[r][v] = MultiplyAdd(sums[r][v], values + r * a.step + k, weights[v]);
    }
  }
  const auto store = [&](auto act, auto add) {
    Out* out = p.out + row * p.step + column;
    const Out* shortcut = add.value ? p.shortcut + row * p.step + column : nullptr;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) {
        Floats value = Activate<kAnyBf16<In, Out>>(act.value, sums[r][v]);
        if constexpr (add.value) value += Load(shortcut + r * p.step + v * kWidth);
        Store(out + r * p.step + v * kWidth, value);
      }
  };
  // What networks have; anything else, and columns that do not fill the panel, go through memory.
  if (whole && p.shortcut && p.act == Act::kNone) return store(std::integral_constant<Act, Act::kNone>{}, std::true_type{});
  if (whole && !p.shortcut) {
    switch (p.act) {
      case Act::kNone: return store(std::integral_constant<Act, Act::kNone>{}, std::false_type{});
      case Act::kRelu: return store(std::integral_constant<Act, Act::kRelu>{}, std::false_type{});
      case Act::kRelu6: return store(std::integral_constant<Act, Act::kRelu6>{}, std::false_type{});
      case Act::kHardSwish: return store(std::integral_constant<Act, Act::kHardSwish>{}, std::false_type{});
      default: break;
    }
  }
  alignas(64) float finished[kRows * kStep];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) Store(finished + (r * kVectors + v) * kWidth, sums[r][v]);
  Finish<kVectors>(p, finished, row, kRows, column);
}

template <int kVectors, typename In, typename Out>
void Rows(const Product<In, Out>& p, Values<In> a, const In* panel, int64_t row, int64_t rows, int64_t column) {
  // Blocks of about the same size: the last rows alone would leave the processor's units idle.
  for (int64_t blocks = (rows + kBlockRows - 1) / kBlockRows; blocks > 0; --blocks) {
    const int64_t size = (rows + blocks - 1) / blocks;
    switch (size) {
      case 1: Block<1, kVectors>(p, a, panel, row, column); break;
      case 2: Block<2, kVectors>(p, a, panel, row, column); break;
      case 3: Block<3, kVectors>(p, a, panel, row, column); break;
      case 4: Block<4, kVectors>(p, a, panel, row, column); break;
      case 5: Block<5, kVectors>(p, a, panel, row, column); break;
      case 6: Block<6, kVectors>(p, a, panel, row, column); break;
      case 7: Block<7, kVectors>(p, a, panel, row, column); break;
      default: Block<kBlockRows, kVectors>(p, a, panel, row, column);
    }
    rows -= size, row += size, a.first += size * a.step;
  }
}

}  // namespace

template <typename In, typename Out>
void Panels(const Product<In, Out>& p, const Values<In>& a, int64_t first, int64_t last, int64_t row, int64_t rows) {
  const int64_t vectors = Padded(p.columns) / kWidth;
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t column = panel * kPanel, these = std::min<int64_t>(kPanelVectors, vectors - panel * kPanelVectors);
    const In* packed = p.weights + column * p.depth + p.skipped * these * kWidth;
    switch (these) {
      case 1: Rows<1>(p, a, packed, row, rows, column); break;
      case 2: Rows<2>(p, a, packed, row, rows, column); break;
      default: Rows<kPanelVectors>(p, a, packed, row, rows, column);
    }
  }
}

template void Panels(const Product<float, float>&, const Values<float>&, int64_t, int64_t, int64_t, int64_t);
template void Panels(const Product<float, Bf16>&, const Values<float>&, int64_t, int64_t, int64_t, int64_t);
template void Panels(const Product<Bf16, float>&, const Values<Bf16>&, int64_t, int64_t, int64_t, int64_t);
template void Panels(const Product<Bf16, Bf16>&, const Values<Bf16>&, int64_t, int64_t, int64_t, int64_t);

namespace {

struct Picture {
  int64_t height, width, channels, out_height, out_width, kernel_height, kernel_width, stride_y, stride_x, top, left;
  int64_t pixel;  // values from a pixel to the next; where a kernel has several columns, as many as `channels`
};

template <typename T>
void Multiply(const T* values, const float* factors, int64_t count, T* to) {
  int64_t at = 0;
  for (; at + kWidth <= count; at += kWidth) Store(to + at, Load(values + at) * Load(factors + at));
  if (at < count) StoreFirst(to + at, LoadFirst(values + at, count - at) * LoadFirst(factors + at, count - at), count - at);
}

// The values under the kernel at each of `rows` outputs from `row` on, times the gate of their picture.
template <typename In>
void Gather(const Picture& g, const In* images, const float* gate, int64_t row, int64_t rows, In* to) {
  const int64_t run = g.kernel_width * g.channels;
  for (int64_t output = row; output < row + rows; ++output) {
    const int64_t picture = output / (g.out_height * g.out_width), place = output % (g.out_height * g.out_width);
    const int64_t y = place / g.out_width * g.stride_y - g.top, x = place % g.out_width * g.stride_x - g.left;
    const int64_t first = std::clamp<int64_t>(-x, 0, g.kernel_width), last = std::clamp<int64_t>(g.width - x, first, g.kernel_width);
    for (int64_t i = 0; i < g.kernel_height; ++i, to += run) {
      if (y + i < 0 || y + i >= g.height) {
        std::fill_n(to, run, In{});
        continue;
      }
      const In* from = images + ((picture * g.height + y + i) * g.width + x) * g.pixel;
      std::fill_n(to, first * g.channels, In{});
      if (gate) {
        const float* factors = gate + picture * g.pixel;
        for (int64_t j = first; j < last; ++j)
          Multiply(from + j * g.channels, factors, g.channels, to + j * g.channels);
      } else {
        std::copy(from + first * g.channels, from + last * g.channels, to + first * g.channels);
      }
      std::fill_n(to + last * g.channels, (g.kernel_width - last) * g.channels, In{});
    }
  }
}

// `rows` outputs of a share of the channels.
template <typename In, typename Out>
void Convolve(ffi::ThreadPool& pool, const Picture& g, const In* images, const float* gate, const Product<In, Out>& p,
              int64_t rows) {
  const bool padded = g.top || g.left || g.height != g.out_height || g.width != g.out_width;
  const bool pointwise = g.kernel_height == 1 && g.kernel_width == 1 && g.stride_y == 1 && g.stride_x == 1 && !padded;
  const int64_t panels = CountPanels(p.columns);
  const int64_t most = std::max<int64_t>(kBlockRows, kGroupBytes / static_cast<int64_t>(sizeof(In)) / p.depth / kBlockRows * kBlockRows);
  const int64_t wanted = 4 * Threads(pool);
  int64_t group = most;
  // Fewer rows for each task until there are tasks for all threads, but not so few that weights are read all the time.
  while (group > 4 * kBlockRows && (rows + group - 1) / group < wanted) group -= kBlockRows;
  // Outputs whose kernels are inside the picture.
  const int64_t first_x = std::min((g.left + g.stride_x - 1) / g.stride_x, g.out_width);
  const int64_t last_x = g.width + g.left < g.kernel_width
                             ? first_x
                             : std::clamp((g.width + g.left - g.kernel_width) / g.stride_x + 1, first_x, g.out_width);
  const bool in_place = !gate && !pointwise && last_x - first_x >= kBlockRows / 2;
  if (in_place) group = std::max<int64_t>(1, group / g.out_width) * g.out_width;  // whole lines
  const int64_t groups = (rows + group - 1) / group;
  const int64_t splits = groups >= wanted ? 1 : std::min(panels, (wanted + groups - 1) / groups);
  Parallel(pool, groups * splits, [&](int64_t task) {
    const int64_t split = task % splits, row = task / splits * group, count = std::min(group, rows - row);
    const int64_t first = panels * split / splits, last = panels * (split + 1) / splits;
    static thread_local Lines<In> gathered;
    auto gather = [&](int64_t from, int64_t many) {
      for (const int64_t end = from + many; from < end; from += most) {
        const int64_t rows = std::min(most, end - from);
        if (static_cast<int64_t>(gathered.size()) < rows * p.depth) gathered.resize(rows * p.depth);
        Gather(g, images, gate, from, rows, gathered.data());
        Panels(p, Values<In>{gathered.data(), p.depth, 1, p.depth, 0}, first, last, from, rows);
      }
    };
    if (pointwise && !gate) {
      Panels(p, Values<In>{images + row * g.pixel, g.pixel, 1, p.depth, 0}, first, last, row, count);
    } else if (!in_place) {
      gather(row, count);
    } else {
      for (int64_t line = row; line < row + count; line += g.out_width) {
        const int64_t picture = line / (g.out_height * g.out_width), y = line / g.out_width % g.out_height;
        const int64_t top = y * g.stride_y - g.top;
        if (top < 0 || top + g.kernel_height > g.height) {
          gather(line, g.out_width);
          continue;
        }
        gather(line, first_x);
        const In* values = images + ((picture * g.height + top) * g.width + first_x * g.stride_x - g.left) * g.pixel;
        Panels(p, Values<In>{values, g.stride_x * g.pixel, g.kernel_height, g.kernel_width * g.channels, g.width * g.pixel}, first,
               last, line + first_x, last_x - first_x);
        gather(line + last_x, g.out_width - last_x);
      }
    }
  });
}

// `more` holds packed weights and a bias for each share of the channels, one after another, then gate and shortcut. `window`
// has six numbers of the kernel, then for each share its channels of the pictures and of the outputs. Several shares are for
// kernels of one column.
template <typename In, typename Out>
ffi::Error DenseOf(ffi::ThreadPool& pool, ffi::AnyBuffer& images, ffi::RemainingArgs& more, ffi::AnyBuffer& out, Numbers window,
                   Act act, bool gated, bool shortcut) {
  const auto in_shape = images.dimensions(), out_shape = out.dimensions();
  const size_t count = window.size() / 2 - 3;
  Picture g{in_shape[1], in_shape[2], in_shape[3], out_shape[1], out_shape[2], window[0],
            window[1],   window[2],   window[3],   window[4],    window[5],    in_shape[3]};
  if (out_shape[0] != in_shape[0] || g.pixel < 1 || g.pixel > kMostChannels || !IsStep(g.kernel_height) || !IsStep(g.kernel_width) ||
      !IsStep(g.stride_y) || !IsStep(g.stride_x) || !IsPad(g.top) || !IsPad(g.left) || (count > 1 && g.kernel_width > 1))
    return ffi::Error::InvalidArgument("dense: outside the limits of the kernel");
  if (Holds(out, 0)) return ffi::Error::Success();
  const float* gate = nullptr;
  const Out* summand = nullptr;
  if (gated) {
    auto factors = more.get<F32>(2 * count);
    if (!factors || !Holds(*factors, in_shape[0] * g.pixel)) return ffi::Error::InvalidArgument("dense: unfit gate");
    gate = factors->typed_data();
  }
  if (shortcut) {
    auto added = more.get<ffi::AnyBuffer>(more.size() - 1);
    if (!added || !Is<Out>(*added) || !Holds(*added, out.element_count()))
      return ffi::Error::InvalidArgument("dense: unfit shortcut");
    summand = Data<Out>(*added);
  }
  // All shares are checked before the first is computed.
  std::vector<Product<In, Out>> products;
  std::vector<int64_t> firsts;
  int64_t first = 0, column = 0;
  for (size_t share = 0; share < count; ++share) {
    const int64_t channels = window[6 + 2 * share], columns = window[7 + 2 * share];
    if (channels < 1 || channels > g.pixel - first || columns < 1 || columns > out_shape[3] - column ||
        g.kernel_width * channels % kAtOnce<In>)
      return ffi::Error::InvalidArgument("dense: the shares are not those of the pictures");
    auto weights = more.get<ffi::AnyBuffer>(2 * share);
    auto bias = more.get<F32>(2 * share + 1);
    const int64_t depth = g.kernel_height * g.kernel_width * channels;
    if (!weights || !bias || !IsPacked<In>(*weights, depth, columns) || !Holds(*bias, Padded(columns)))
      return ffi::Error::InvalidArgument("dense: the weights are not packed for this processor");
    products.push_back({depth, columns, out_shape[3], Data<In>(*weights), bias->typed_data(),
                        summand ? summand + column : nullptr, Data<Out>(out) + column, act});
    firsts.push_back(first);
    first += channels, column += columns;
  }
  if (first != g.pixel || column != out_shape[3])
    return ffi::Error::InvalidArgument("dense: the shares are not those of the pictures");
  const int64_t rows = out_shape[0] * g.out_height * g.out_width;
  for (size_t share = 0; share < count; ++share) {
    g.channels = window[6 + 2 * share];
    Convolve(pool, g, Data<In>(images) + firsts[share], gate ? gate + firsts[share] : nullptr, products[share], rows);
  }
  return ffi::Error::Success();
}

ffi::Error Dense(ffi::ThreadPool pool, ffi::RunId run, ffi::AnyBuffer images, ffi::RemainingArgs more,
                 ffi::Result<ffi::AnyBuffer> out, Numbers window, int64_t act, bool gated, bool shortcut) {
  if (images.dimensions().size() != 4 || out->dimensions().size() != 4 || window.size() < 8 || window.size() % 2 || !IsAct(act) ||
      more.size() != window.size() - 6 + static_cast<size_t>(gated) + static_cast<size_t>(shortcut))
    return ffi::Error::InvalidArgument("dense: pictures of four axes, and numbers and weights of each share are needed");
  AdviseHugePages(out->untyped_data(), out->size_bytes(), run.run_id);
  const auto compute = [&](auto in, auto result) {
    return DenseOf<decltype(in), decltype(result)>(pool, images, more, *out, window, static_cast<Act>(act), gated, shortcut);
  };
  if (Is<float>(images) && Is<float>(*out)) return compute(float{}, float{});
  if (Is<float>(images) && Is<Bf16>(*out)) return compute(float{}, Bf16{});
  if (Is<Bf16>(images) && Is<float>(*out)) return compute(Bf16{}, float{});
  if (Is<Bf16>(images) && Is<Bf16>(*out)) return compute(Bf16{}, Bf16{});
  return ffi::Error::InvalidArgument("dense: float32 or bfloat16");
}

// ------------------------------------------------------------------------------------------------- outer products

// sums[r][v] += a[m][r] * b[m][v] over `many` rows m.
template <int kRows, int kVectors>
void Outer(const float* a, int64_t a_step, const float* const* b, int64_t b_step, int64_t many, float* sums, int64_t step) {
  Floats total[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) total[r][v] = Load(sums + r * step + v * kWidth);
  const float* at[kVectors];
  for (int v = 0; v < kVectors; ++v) at[v] = b[v];
  for (int64_t m = 0; m < many; ++m, a += a_step) {
    Floats values[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) values[v] = Load(at[v] + m * b_step);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) total[r][v] += a[r] * values[v];
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) Store(sums + r * step + v * kWidth, total[r][v]);
}

template <int kVectors>
void OuterRows(int64_t rows, const float* a, int64_t a_step, const float* const* b, int64_t b_step, int64_t many, float* sums,
               int64_t step) {
  for (; rows >= 8; rows -= 8, a += 8, sums += 8 * step) Outer<8, kVectors>(a, a_step, b, b_step, many, sums, step);
  if (rows >= 4) {
    Outer<4, kVectors>(a, a_step, b, b_step, many, sums, step);
    rows -= 4, a += 4, sums += 4 * step;
  }
  for (; rows > 0; --rows, ++a, sums += step) Outer<1, kVectors>(a, a_step, b, b_step, many, sums, step);
}

// sums (rows, width in whole vectors) += a^T b over `many` rows. The last vector of columns may overlap the one before.
void AddOuter(int64_t rows, const float* a, int64_t a_step, const float* b, int64_t width, int64_t many, float* sums) {
  const int64_t vectors = Padded(width) / kWidth, step = vectors * kWidth;
  for (int64_t vector = 0; vector < vectors; vector += kPanelVectors) {
    const float* columns[kPanelVectors];
    const int64_t these = std::min<int64_t>(kPanelVectors, vectors - vector);
    for (int64_t v = 0; v < these; ++v) columns[v] = b + std::min((vector + v) * kWidth, width - kWidth);
    float* to = sums + vector * kWidth;
    switch (these) {
      case 1: OuterRows<1>(rows, a, a_step, columns, width, many, to, step); break;
      case 2: OuterRows<2>(rows, a, a_step, columns, width, many, to, step); break;
      default: OuterRows<kPanelVectors>(rows, a, a_step, columns, width, many, to, step);
    }
  }
}

// Adds up the sums of `parts`, and copies them to rows of `width`.
void Merge(Lines<float>& sums, int64_t parts, int64_t rows, int64_t width, float* out) {
  const int64_t step = Padded(width);
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t at = 0; at < rows * step; ++at) sums[at] += sums[part * rows * step + at];
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t c = 0; c < step; c += kWidth)
      std::copy_n(sums.data() + row * step + c, kWidth, out + row * width + std::min(c, width - kWidth));
}

// out (a's columns, b's columns) = a^T b, for matrices of many rows.
ffi::Error OuterProduct(ffi::ThreadPool pool, F32 a, F32 b, ffi::Result<F32> out) {
  const auto shape = out->dimensions();
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < kWidth)
    return ffi::Error::InvalidArgument("outer product: too few rows or columns");
  const int64_t height = shape[0], width = shape[1], many = static_cast<int64_t>(b.element_count()) / width;
  if (!Holds(a, many * height) || !Holds(b, many * width))
    return ffi::Error::InvalidArgument("outer product: the matrices differ in rows");
  const int64_t vectors = Padded(width) / kWidth, step = vectors * kWidth, threads = Threads(pool);
  // Long matrices are divided by rows, with sums for each part; short ones by columns of `a`.
  const int64_t room = std::max<int64_t>(1, kMostSums / 4 / (height * step));
  const int64_t parts = many >= 1024 * threads ? std::min(threads, room) : 1;
  const int64_t bands = parts == threads ? 1 : std::min((2 * threads + parts - 1) / parts, (height + 7) / 8);
  Lines<float> sums(parts * height * step, 0.0f);
  const int64_t chunk = std::clamp<int64_t>((kGroupBytes / 4) / (height + width), 16, 1024);
  Parallel(pool, parts * bands, [&](int64_t task) {
    const int64_t part = task / bands, band = task % bands;
    const int64_t top = (height + 7) / 8 * band / bands * 8, bottom = std::min(height, (height + 7) / 8 * (band + 1) / bands * 8);
    const int64_t end = many * (part + 1) / parts;
    float* part_sums = sums.data() + part * height * step + top * step;
    for (int64_t row = many * part / parts; row < end; row += chunk) {
      const int64_t count = std::min(chunk, end - row);
      const float* from = a.typed_data() + row * height + top;
      AddOuter(bottom - top, from, height, b.typed_data() + row * width, width, count, part_sums);
    }
  });
  Merge(sums, parts, height, width, out->typed_data());
  return ffi::Error::Success();
}

// The gradient of a convolution by its kernel: the values under the kernel, as rows, times the gradients of the outputs.
ffi::Error DenseKernelGradient(ffi::ThreadPool pool, F32 images, F32 gradient, ffi::Result<F32> out, Numbers window) {
  const auto in_shape = images.dimensions(), out_shape = gradient.dimensions(), shape = out->dimensions();
  if (in_shape.size() != 4 || out_shape.size() != 4 || shape.size() != 4 || window.size() != 4)
    return ffi::Error::InvalidArgument("kernel gradient: four axes and four numbers of the window are needed");
  const Picture g{in_shape[1], in_shape[2], in_shape[3], out_shape[1], out_shape[2], shape[0],
                  shape[1],    window[0],   window[1],   window[2],    window[3],    in_shape[3]};
  const int64_t width = shape[3];
  if (out_shape[0] != in_shape[0] || shape[2] != g.channels || out_shape[3] != width || width < kWidth || g.channels < 1 ||
      g.channels > kMostChannels || !IsStep(g.kernel_height) || !IsStep(g.kernel_width) || !IsStep(g.stride_y) ||
      !IsStep(g.stride_x) || !IsPad(g.top) || !IsPad(g.left))
    return ffi::Error::InvalidArgument("kernel gradient: outside the limits of the kernel");
  const int64_t depth = g.kernel_height * g.kernel_width * g.channels, step = Padded(width);
  if (depth > kMostSums / 4 / step) return ffi::Error::InvalidArgument("kernel gradient: the kernel is too large");
  const int64_t rows = out_shape[0] * g.out_height * g.out_width;
  const int64_t parts = std::clamp<int64_t>(std::min(rows / 64, kMostSums / 4 / (depth * step)), 1, Threads(pool));
  const int64_t chunk = std::clamp<int64_t>(kGroupBytes / 4 / (depth + width), 16, 1024);
  Lines<float> sums(parts * depth * step, 0.0f);
  Parallel(pool, parts, [&](int64_t part) {
    static thread_local Lines<float> gathered;
    if (static_cast<int64_t>(gathered.size()) < chunk * depth) gathered.resize(chunk * depth);
    const int64_t end = rows * (part + 1) / parts;
    for (int64_t row = rows * part / parts; row < end; row += chunk) {
      const int64_t count = std::min(chunk, end - row);
      Gather<float>(g, images.typed_data(), nullptr, row, count, gathered.data());
      AddOuter(depth, gathered.data(), depth, gradient.typed_data() + row * width, width, count, sums.data() + part * depth * step);
    }
  });
  Merge(sums, parts, depth, width, out->typed_data());
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jeffnet_dense_kernel_gradient, Caught<DenseKernelGradient>::Call,
                              Bind().Arg<F32>().Arg<F32>().Ret<F32>().Attr<Numbers>("window"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jeffnet_dense, Caught<Dense>::Call,
                              Bind().Ctx<ffi::RunId>().Arg<ffi::AnyBuffer>().RemainingArgs().Ret<ffi::AnyBuffer>()
                                  .Attr<Numbers>("window").Attr<int64_t>("act").Attr<bool>("gated").Attr<bool>("shortcut"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jeffnet_outer_product, Caught<OuterProduct>::Call, Bind().Arg<F32>().Arg<F32>().Ret<F32>());

}  // namespace jeffnet

extern "C" int64_t jeffnet_vector_floats() { return jeffnet::kWidth; }
extern "C" int64_t jeffnet_panel_floats() { return jeffnet::kWidth * jeffnet::kPanelVectors; }
extern "C" int64_t jeffnet_most_sums() { return jeffnet::kMostSums; }
