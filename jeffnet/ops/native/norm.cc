// BatchNorm in training, with the activation after it, for a matrix of rows (pixels) by columns (channels), on CPUs.
//
// Each pass reads rows in order, all channels of a row together; the values per channel stay in the first cache.

#include "common.h"

namespace jeffnet {
namespace {

constexpr int64_t kChunkBytes = 64 << 10;  // rows that are read twice: the second time from a cache

// Calls `block(channel, place)` for whole vectors of channels. The last may overlap the one before, so sums are kept by
// `place`, where it does not.
template <typename F>
inline void ForBlocks(int64_t channels, const F& block) {
  for (int64_t place = 0; place < channels; place += kWidth) block(std::min(place, channels - kWidth), place);
}

int64_t Tasks(ffi::ThreadPool& pool, int64_t rows) {
  return std::clamp<int64_t>(rows / 64, 1, 4 * Threads(pool));
}

// Mean and sum of squared deviations of some rows, which can be merged with those of others (Chan, Golub and LeVeque,
// "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979). In float64: a mean that is large
// against the deviation leaves float32 few digits for the difference of two.
struct Moments {
  double count = 0.0;
  Lines<double> mean, squares;

  explicit Moments(int64_t channels) : mean(channels, 0.0), squares(channels, 0.0) {}

  void add(int64_t c, double more, double more_mean, double more_squares) {
    const double share = more / (count + more), apart = more_mean - mean[c];
    mean[c] += apart * share;
    squares[c] += more_squares + apart * apart * count * share;
  }
};

// Whether each buffer has one value per channel.
template <typename... Buffers>
bool OnePerChannel(int64_t channels, Buffers&... buffers) {
  return channels >= kWidth && (Holds(buffers, channels) && ...);
}

// Whether `x` has whole rows.
bool HasRows(F32& x, int64_t channels) { return x.element_count() % channels == 0; }

ffi::Error Statistics(ffi::ThreadPool pool, F32 x, ffi::Result<F32> mean, ffi::Result<F32> var) {
  const int64_t channels = mean->element_count();
  if (!OnePerChannel(channels, *var) || !HasRows(x, channels)) return ffi::Error::InvalidArgument("statistics: unfit shapes");
  const int64_t rows = x.element_count() / channels, padded = Padded(channels);
  const int64_t tasks = Tasks(pool, rows), chunk = std::max<int64_t>(1, kChunkBytes / (4 * channels));
  std::vector<Moments> moments(tasks, Moments(padded));
  Parallel(pool, tasks, [&](int64_t task) {
    Moments& merged = moments[task];
    Lines<float> middles(padded), rests(padded), squares(padded);
    const int64_t end = rows * (task + 1) / tasks;
    for (int64_t first = rows * task / tasks; first < end; first += chunk) {
      const int64_t many = std::min(chunk, end - first);
      const float count = static_cast<float>(many), *from = x.typed_data() + first * channels;
      ForBlocks(channels, [&](int64_t c, int64_t place) {
        Floats sum = {}, rest = {}, square = {};
        for (int64_t row = 0; row < many; ++row) sum += Load(from + row * channels + c);
        const Floats middle = sum / count;
        for (int64_t row = 0; row < many; ++row) {
          const Floats apart = Load(from + row * channels + c) - middle;
          rest += apart;
          square += apart * apart;
        }
        // The sum was rounded: the sum of the deviations, which would be 0, corrects mean and squares.
        Store(middles.data() + place, middle);
        Store(rests.data() + place, rest / count);
        Store(squares.data() + place, square - rest * rest / count);
      });
      for (int64_t c = 0; c < padded; ++c)
        merged.add(c, many, static_cast<double>(middles[c]) + static_cast<double>(rests[c]), squares[c]);
      merged.count += many;
    }
  });
  for (int64_t task = 1; task < tasks; ++task) {
    if (!moments[task].count) continue;
    for (int64_t c = 0; c < padded; ++c) moments[0].add(c, moments[task].count, moments[task].mean[c], moments[task].squares[c]);
    moments[0].count += moments[task].count;
  }
  ForBlocks(channels, [&](int64_t c, int64_t place) {
    for (int64_t lane = 0; lane < kWidth; ++lane) {
      mean->typed_data()[c + lane] = static_cast<float>(moments[0].mean[place + lane]);
      var->typed_data()[c + lane] = static_cast<float>(moments[0].squares[place + lane] / static_cast<double>(rows));
    }
  });
  return ffi::Error::Success();
}

template <Act kAct>
void NormalizeRows(int64_t first, int64_t last, int64_t channels, const float* x, const float* mean, const float* factor,
                   const float* bias, float* out) {
  for (int64_t row = first; row < last; ++row)
    ForBlocks(channels, [&](int64_t c, int64_t) {
      const Floats value = (Load(x + row * channels + c) - Load(mean + c)) * Load(factor + c) + Load(bias + c);
      Store(out + row * channels + c, Activate(kAct, value));
    });
}

// Two sums per channel: of the gradient before the activation, and of that times the deviation from the mean.
template <Act kAct>
void SumRows(int64_t first, int64_t last, int64_t channels, const float* x, const float* mean, const float* factor,
             const float* bias, const float* gradient, float* sums, float* products) {
  for (int64_t row = first; row < last; ++row)
    ForBlocks(channels, [&](int64_t c, int64_t place) {
      const Floats apart = Load(x + row * channels + c) - Load(mean + c);
      const Floats slope = Slope(kAct, apart * Load(factor + c) + Load(bias + c));
      const Floats inner = Load(gradient + row * channels + c) * slope;
      Store(sums + place, Load(sums + place) + inner);
      Store(products + place, Load(products + place) + inner * apart);
    });
}

// gradient * slope * factor + apart * by_apart + constant
template <Act kAct>
void GradientRows(int64_t first, int64_t last, int64_t channels, const float* x, const float* mean, const float* factor,
                  const float* bias, const float* gradient, const float* by_apart, const float* constant, float* out) {
  for (int64_t row = first; row < last; ++row)
    ForBlocks(channels, [&](int64_t c, int64_t) {
      const Floats apart = Load(x + row * channels + c) - Load(mean + c);
      const Floats slope = Slope(kAct, apart * Load(factor + c) + Load(bias + c));
      const Floats inner = Load(gradient + row * channels + c) * slope;
      Store(out + row * channels + c, inner * Load(factor + c) + apart * Load(by_apart + c) + Load(constant + c));
    });
}

// Calls `function(act, task, first, last)` for the tasks and their rows, with the activation as a constant.
template <typename F>
void ForRows(ffi::ThreadPool& pool, int64_t tasks, int64_t rows, int64_t act, const F& function) {
  Parallel(pool, tasks, [&](int64_t task) {
    WithAct(static_cast<Act>(act),
            [&](auto kind) { function(kind, task, rows * task / tasks, rows * (task + 1) / tasks); });
  });
}

ffi::Error Normalize(ffi::ThreadPool pool, ffi::RunId run, F32 x, F32 mean, F32 factor, F32 bias, ffi::Result<F32> out, int64_t act) {
  const int64_t channels = mean.element_count();
  if (!OnePerChannel(channels, factor, bias) || !HasRows(x, channels) || !Holds(*out, x.element_count()) || !IsAct(act))
    return ffi::Error::InvalidArgument("normalize: unfit shapes or activation");
  const int64_t rows = x.element_count() / channels, tasks = Tasks(pool, rows);
  AdviseHugePages(out->typed_data(), 4 * rows * channels, run.run_id);
  ForRows(pool, tasks, rows, act, [&](auto kind, int64_t, int64_t first, int64_t last) {
    NormalizeRows<decltype(kind)::value>(first, last, channels, x.typed_data(), mean.typed_data(), factor.typed_data(),
                                         bias.typed_data(), out->typed_data());
  });
  return ffi::Error::Success();
}

ffi::Error Sums(ffi::ThreadPool pool, F32 x, F32 mean, F32 factor, F32 bias, F32 gradient, ffi::Result<F32> sums,
                ffi::Result<F32> products, int64_t act) {
  const int64_t channels = mean.element_count();
  if (!OnePerChannel(channels, factor, bias, *sums, *products) || !HasRows(x, channels) ||
      !Holds(gradient, x.element_count()) || !IsAct(act))
    return ffi::Error::InvalidArgument("sums: unfit shapes or activation");
  const int64_t rows = x.element_count() / channels, tasks = Tasks(pool, rows);
  const int64_t padded = Padded(channels);
  Lines<float> parts(2 * padded * tasks, 0.0f);
  ForRows(pool, tasks, rows, act, [&](auto kind, int64_t task, int64_t first, int64_t last) {
    float* part = parts.data() + 2 * padded * task;
    SumRows<decltype(kind)::value>(first, last, channels, x.typed_data(), mean.typed_data(), factor.typed_data(),
                                   bias.typed_data(), gradient.typed_data(), part, part + padded);
  });
  for (int64_t task = 1; task < tasks; ++task)
    for (int64_t at = 0; at < 2 * padded; ++at) parts[at] += parts[2 * padded * task + at];
  ForBlocks(channels, [&](int64_t c, int64_t place) {
    Store(sums->typed_data() + c, Load(parts.data() + place));
    Store(products->typed_data() + c, Load(parts.data() + padded + place));
  });
  return ffi::Error::Success();
}

ffi::Error Gradient(ffi::ThreadPool pool, F32 x, F32 mean, F32 factor, F32 bias, F32 gradient, F32 by_apart, F32 constant,
                    ffi::Result<F32> out, int64_t act) {
  const int64_t channels = mean.element_count();
  if (!OnePerChannel(channels, factor, bias, by_apart, constant) || !HasRows(x, channels) ||
      !Holds(gradient, x.element_count()) || !Holds(*out, x.element_count()) || !IsAct(act))
    return ffi::Error::InvalidArgument("gradient: unfit shapes or activation");
  const int64_t rows = x.element_count() / channels, tasks = Tasks(pool, rows);
  ForRows(pool, tasks, rows, act, [&](auto kind, int64_t, int64_t first, int64_t last) {
    GradientRows<decltype(kind)::value>(first, last, channels, x.typed_data(), mean.typed_data(), factor.typed_data(),
                                        bias.typed_data(), gradient.typed_data(), by_apart.typed_data(),
                                        constant.typed_data(), out->typed_data());
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jeffnet_statistics, Caught<Statistics>::Call, Bind().Arg<F32>().Ret<F32>().Ret<F32>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(jeffnet_normalize, Caught<Normalize>::Call,
                              Bind().Ctx<ffi::RunId>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Ret<F32>()
                                  .Attr<int64_t>("act"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jeffnet_normalize_sums, Caught<Sums>::Call,
                              Bind().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Ret<F32>().Ret<F32>()
                                  .Attr<int64_t>("act"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jeffnet_normalize_gradient, Caught<Gradient>::Call,
                              Bind().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>().Arg<F32>()
                                  .Ret<F32>().Attr<int64_t>("act"));

}  // namespace jeffnet
