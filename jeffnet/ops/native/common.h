// What the kernels share: vectors of the machine's width, XLA's threads, activations.

#ifndef JEFFNET_COMMON_H_
#define JEFFNET_COMMON_H_

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef __AVX__
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jeffnet {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
// The upper half of a float32. It is stored, and computed with as float32.
struct Bf16 {
  uint16_t bits;
};
template <>
struct VectorOf<Bf16> : VectorOf<float> {};
template <typename... T>
constexpr bool kAnyBf16 = (std::is_same_v<T, Bf16> || ...);
template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
constexpr int64_t kLanes = kVectorBytes / sizeof(T);
template <>
constexpr int64_t kLanes<Bf16> = kLanes<float>;

template <typename T>
inline Vector<T> Load(const T* from) {
  return *reinterpret_cast<const Vector<T>*>(from);
}
template <typename T>
inline void Store(T* to, Vector<T> value) {
  *reinterpret_cast<Vector<T>*>(to) = value;
}

using Floats = Vector<float>;
using Words = Vector<uint32_t>;
constexpr int64_t kWidth = kLanes<float>;

typedef uint16_t Shorts __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
template <>
inline Floats Load(const Bf16* from) {
  const Words bits = __builtin_convertvector(*reinterpret_cast<const Shorts*>(from), Words) << 16;
  return reinterpret_cast<const Floats&>(bits);
}
// Rounds to the nearest, and to even.
template <>
inline void Store(Bf16* to, Floats value) {
#if defined(__AVX512BF16__)
  *reinterpret_cast<Shorts*>(to) = reinterpret_cast<Shorts>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(value)));
#else
  const Words bits = reinterpret_cast<const Words&>(value), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  *reinterpret_cast<Shorts*>(to) = __builtin_convertvector(value == value ? rounded : Words{} + 0x7fc0, Shorts);
#endif
}

// The first `count` values of a vector, then zeros; `count` is at most that of its lanes.
template <typename T>
inline Vector<T> LoadFirst(const T* from, int64_t count) {
#ifdef __AVX512F__
  if constexpr (std::is_same_v<T, float>)
    return reinterpret_cast<Floats>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from));
#endif
  T values[kLanes<T>] = {};
  std::copy_n(from, count, values);
  return Load(values);
}
template <typename T>
inline void StoreFirst(T* to, Vector<T> value, int64_t count) {
#ifdef __AVX512F__
  if constexpr (std::is_same_v<T, float>)
    return _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m512>(value));
#endif
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  if constexpr (std::is_same_v<T, Bf16>) {
    alignas(32) Bf16 values[kWidth];
    Store(values, value);
    return _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << count) - 1),
                                    _mm256_load_si256(reinterpret_cast<const __m256i*>(values)));
  }
#endif
  T values[kLanes<T>];
  Store(values, value);
  std::copy_n(values, count, to);
}

// sum + a * b, where `weights` has a vector of b for each of the values `a` that are taken at once.
template <typename T>
constexpr int64_t kAtOnce = 1;
template <>
constexpr int64_t kAtOnce<Bf16> = 2;  // pairs in each lane, as processors with BF16 take them

inline Floats MultiplyAdd(Floats sum, const float* a, Floats b) { return sum + *a * b; }
inline Floats MultiplyAdd(Floats sum, const Bf16* a, Words b) {
  uint32_t pair;
  std::memcpy(&pair, a, sizeof(pair));
  const Words both = Words{} + pair;
#if defined(__AVX512BF16__)
  return reinterpret_cast<Floats>(
      _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(both), reinterpret_cast<__m512bh>(b)));
#else
  const Words a_low = both << 16, b_low = b << 16, a_high = both & 0xffff0000, b_high = b & 0xffff0000;
  sum += reinterpret_cast<const Floats&>(a_high) * reinterpret_cast<const Floats&>(b_high);
  return sum + reinterpret_cast<const Floats&>(a_low) * reinterpret_cast<const Floats&>(b_low);
#endif
}
inline Floats LoadWeights(const float* from) { return Load(from); }
inline Words LoadWeights(const Bf16* from) { return *reinterpret_cast<const Words*>(from); }
// Channels filled up to whole vectors.
inline int64_t Padded(int64_t channels) { return (channels + kWidth - 1) / kWidth * kWidth; }

// ----------------------------------------------------------------------------------------------------------- checks

// Handlers check all that they rely on, so that no call reads or writes outside the buffers. `limits.py` has the same
// limits; beyond them JAX's operations are used. Within them no position overflows: pictures are smaller than 2^45 bytes.
constexpr int64_t kMostStep = 1 << 16;  // strides, dilations, sides of kernels
constexpr int64_t kMostPad = kMostStep * kMostStep;
constexpr int64_t kMostChannels = 1 << 28;
constexpr int64_t kMostScratch = 16 << 20;  // bytes, of one thread
constexpr int64_t kMostSums = 64 << 20;     // bytes, of all threads together

inline bool IsStep(int64_t value) { return 1 <= value && value <= kMostStep; }
inline bool IsPad(int64_t value) { return 0 <= value && value <= kMostPad; }

template <typename Buffer>
bool Holds(Buffer& buffer, int64_t count) {
  return static_cast<int64_t>(buffer.element_count()) == count;
}

// The type of what a handler has been given.
template <typename T>
constexpr ffi::DataType kType = ffi::F32;
template <>
constexpr ffi::DataType kType<Bf16> = ffi::BF16;
template <typename T>
inline bool Is(const ffi::AnyBuffer& buffer) {
  return buffer.element_type() == kType<T>;
}
template <typename T>
inline T* Data(const ffi::AnyBuffer& buffer) {
  return static_cast<T*>(buffer.untyped_data());
}

using F32 = ffi::Buffer<ffi::F32>;
using Numbers = ffi::Span<const int64_t>;

// Every handler takes these first.
inline auto Bind() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>(); }

// Calls a handler and returns what it throws as a status: no exception may leave this library.
template <auto kHandler>
struct Caught;
template <typename... Args, ffi::Error (*kHandler)(Args...)>
struct Caught<kHandler> {
  static ffi::Error Call(Args... args) {
    try {
      return kHandler(std::move(args)...);
    } catch (const std::bad_alloc&) {
      return ffi::Error(ffi::ErrorCode::kResourceExhausted, "out of memory");  // short: std::string allocates nothing
    } catch (const std::exception& error) {
      return ffi::Error::Internal(error.what());
    }
  }
};

// ---------------------------------------------------------------------------------------------------------- threads

// A forked process has none of its parent's threads, ours or XLA's, but all their locks as they were.
inline std::atomic<bool> forked{false};
inline const int kWatchesForks = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

// How many threads share the work.
inline int64_t Threads(const ffi::ThreadPool& pool) {
  return forked.load() ? 1 : std::max<int64_t>(1, pool.num_threads());
}

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Threads that help one caller at a time. A network is a hundred short calls in a row, and waking a thread takes longer
// than many of them, so helpers wait busily for the next call before they sleep.
class Team {
 public:
  // Made once, with this many helpers, and never destroyed, since its threads may outlive everything else.
  static Team& Get(int64_t helpers) {
    static Team* team = new Team(helpers);
    return *team;
  }

  // Runs `work(0) .. work(tasks - 1)`, which must not throw; false, and runs nothing, if it is helping another caller.
  template <typename Work>
  bool Run(int64_t tasks, const Work& work) {
    if (!use_.try_lock()) return false;
    Job job{tasks, &work, [](const void* work, int64_t task) { (*static_cast<const Work*>(work))(task); }};
    std::fegetenv(&job.rounding);
    job_.store(&job);
    generation_.fetch_add(1);
    if (sleeping_.load()) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    job.Loop();
    // Helpers that come later find no job; wait for those that are inside.
    job_.store(nullptr);
    for (int64_t turn = 1; inside_.load(); ++turn) Rest(turn);
    use_.unlock();
    return true;
  }

 private:
  struct Job {
    const int64_t tasks;
    const void* work;
    void (*call)(const void*, int64_t);
    std::fenv_t rounding{};  // of the caller: XLA's threads take denormals for 0, and helpers must too
    std::atomic<int64_t> next{0};

    void Loop() {
      for (int64_t task; (task = next.fetch_add(1)) < tasks;) call(work, task);
    }
  };

  explicit Team(int64_t helpers) {
    try {
      for (int64_t helper = 0; helper < helpers; ++helper) std::thread([this] { Help(); }).detach();
    } catch (const std::exception&) {
      // There are no more threads. Those that have started help, and need this object.
    }
  }

  static void Rest(int64_t turn) {
    if (turn % 64) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }

  void Help() {
    constexpr int64_t kTurns = 64 * 100;  // some 0.2 ms
    for (uint64_t seen = 0;;) {
      for (int64_t turn = 1; turn < kTurns && generation_.load() == seen; ++turn) Rest(turn);
      if (generation_.load() == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
        sleeping_.fetch_sub(1);
      }
      seen = generation_.load();
      inside_.fetch_add(1);
      if (Job* job = job_.load()) {
        std::fesetenv(&job->rounding);
        job->Loop();
      }
      inside_.fetch_sub(1);
    }
  }

  std::mutex use_, mutex_;
  std::condition_variable wake_;
  std::atomic<Job*> job_{nullptr};
  std::atomic<uint64_t> generation_{0};
  std::atomic<int64_t> inside_{0}, sleeping_{0};
};

// Runs `work(0) .. work(tasks - 1)` on as many threads as XLA has: the team's, or XLA's if the team is busy. Throws
// std::bad_alloc if any of them throws.
template <typename Work>
void Parallel(ffi::ThreadPool& pool, int64_t tasks, const Work& work) {
  const int64_t threads = std::min(Threads(pool), tasks);
  if (threads <= 1) {
    for (int64_t task = 0; task < tasks; ++task) work(task);
    return;
  }
  std::atomic<bool> failed{false};
  const auto caught = [&work, &failed](int64_t task) noexcept {
    try {
      work(task);
    } catch (...) {
      failed.store(true);
    }
  };
  if (!Team::Get(Threads(pool) - 1).Run(tasks, caught)) {
    struct State {
      std::atomic<int64_t> next{0}, done{0};
    };
    auto state = std::make_shared<State>();
    // The caller takes tasks too and waits only for those that have begun, never for a thread that does not come. A
    // thread that comes after the last task does not touch `caught`, which may be gone.
    const auto* shared = &caught;
    auto loop = [state, shared, tasks] {
      for (int64_t task; (task = state->next.fetch_add(1)) < tasks;) {
        (*shared)(task);
        state->done.fetch_add(1, std::memory_order_release);
      }
    };
    try {
      for (int64_t thread = 1; thread < threads; ++thread) pool.Schedule(std::decay_t<decltype(loop)>(loop));
    } catch (const std::bad_alloc&) {
      // Fewer threads do the work. Those that come must still find `caught`.
    }
    loop();
    while (state->done.load(std::memory_order_acquire) < tasks) std::this_thread::yield();
  }
  if (failed.load()) throw std::bad_alloc();
}

// ----------------------------------------------------------------------------------------------------------- memory

// Begins at a cache line: vectors that cross one take twice the time to load and store.
template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, kLine); }
  template <typename U>
  bool operator==(const LineAllocator<U>&) const {
    return true;
  }
  template <typename U>
  bool operator!=(const LineAllocator<U>&) const {
    return false;
  }
};
template <typename T>
using Lines = std::vector<T, LineAllocator<T>>;

// XLA allocates a program's memory anew in each run. With pages of 4 KiB, page faults take half of a training step; pages
// of 2 MiB cost a tenth of that, where /sys/kernel/mm/transparent_hugepage/enabled is "madvise". The first large buffer of
// a run shows where its memory is.
inline void AdviseHugePages(const void* buffer, int64_t bytes, int64_t run) {
#ifdef __linux__
  constexpr int64_t kWorthIt = 16 << 20;
  static std::atomic<int64_t> advised{-1};
  if (bytes < kWorthIt || advised.exchange(run) == run) return;
  FILE* maps = std::fopen("/proc/self/maps", "re");
  if (!maps) return;
  const uintptr_t place = reinterpret_cast<uintptr_t>(buffer);
  char line[512];
  while (std::fgets(line, sizeof(line), maps)) {
    unsigned long first = 0, last = 0;
    if (std::sscanf(line, "%lx-%lx", &first, &last) == 2 && first <= place && place < last) {
      madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
      break;
    }
  }
  std::fclose(maps);
#endif
}

// ------------------------------------------------------------------------------------------------------ activations

// In the order in which `jeffnet.ops.dense` numbers them.
enum class Act : int64_t { kNone = 0, kRelu = 1, kRelu6 = 2, kSilu = 3, kHardSwish = 4, kSigmoid = 5, kHardSigmoid = 6 };

inline bool IsAct(int64_t number) { return 0 <= number && number <= static_cast<int64_t>(Act::kHardSigmoid); }

#if defined(__AVX512F__) && defined(__AVX512DQ__)
// 1 / (1 + e^-x), to 2.3e-7 of its value. With t = -x / ln 2, e^-x = 2^floor(t) * 2^(t - floor(t)): one
// instruction takes the fraction, another scales by the power. Then a polynomial of least relative error, 8e-8, and for the
// quotient the processor's estimate of a reciprocal and a step of Newton's method.
template <typename V>
inline V Sigmoid(V x) {
  static_assert(sizeof(V) == kVectorBytes);
  // Beyond these the result is 0 and 1. The second operand is what a comparison with NaN yields.
  const __m512 bounded = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), reinterpret_cast<__m512>(x)));
  const __m512 factor = _mm512_set1_ps(-1.44269504088896341f);
  const __m512 t = _mm512_mul_ps(bounded, factor);
  const __m512 left = _mm512_set1_ps(-1.925963033500e-8f);  // of 1 / ln 2 beyond its first 24 bits
  const __m512 rounded_off = _mm512_fmadd_ps(bounded, left, _mm512_fmsub_ps(bounded, factor, t));
  const V r = reinterpret_cast<V>(_mm512_add_ps(_mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF), rounded_off));
  V p = V{} + 1.8775765922e-3f;
  p = p * r + 8.9893406318e-3f;
  p = p * r + 5.5826317233e-2f;
  p = p * r + 2.4015361751e-1f;
  p = p * r + 6.9315307310e-1f;
  p = p * r + 9.9999992507e-1f;
  const V sum = 1.0f + reinterpret_cast<V>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), t));
  const V estimate = reinterpret_cast<V>(_mm512_rcp14_ps(reinterpret_cast<__m512>(sum)));
  return estimate + estimate * (1.0f - sum * estimate);
}

// To 1.5e-4 of its value, a tenth of what bfloat16 rounds off, in half the time: a shorter polynomial, and the reciprocal as
// the processor estimates it.
template <typename V>
inline V CoarseSigmoid(V x) {
  static_assert(sizeof(V) == kVectorBytes);
  const __m512 t = _mm512_mul_ps(reinterpret_cast<__m512>(x), _mm512_set1_ps(-1.44269504088896341f));
  const V r = reinterpret_cast<V>(_mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF));
  V p = V{} + 7.802452e-2f;
  p = p * r + 2.2606716e-1f;
  p = p * r + 6.9583353e-1f;
  p = p * r + 9.9992522e-1f;
  const V sum = 1.0f + reinterpret_cast<V>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), t));
  return reinterpret_cast<V>(_mm512_rcp14_ps(reinterpret_cast<__m512>(sum)));
}
#else
// Two products more than the six that a Taylor series needs for float32: n = round(x / ln 2), e^x = 2^n * e^(x - n ln 2).
template <typename V>
inline V Exp(V power) {
  static_assert(sizeof(V) == kVectorBytes);
  using Ints = Vector<int32_t>;
  // Beyond these 2^n is no normal number; in 1 + e^x they are as good as 0 and infinity.
  const V most = V{} + 88.0f, least = V{} - 87.0f;
  V x = power > most ? most : power;
  x = x < least ? least : x;
  const V magic = V{} + 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded number in the low bits
  const V shifted = x * 1.44269504088896341f + magic;
  const V n = shifted - magic;
  V r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  V p = V{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Ints exponent = (reinterpret_cast<const Ints&>(shifted) + 127) << 23;
  return p * reinterpret_cast<const V&>(exponent);
}

// AVX's estimate of a reciprocal has too few bits: it would make 1 a little less, and slopes of large values wrong.
template <typename V>
inline V Sigmoid(V x) {
  return 1.0f / (1.0f + Exp(-x));
}
template <typename V>
inline V CoarseSigmoid(V x) {
  return Sigmoid(x);
}
#endif

// Of a bound and `x`; NaN stays NaN, since it is no less and no more than the bound.
template <typename V>
inline V AtLeast(V x, V bound) {
#ifdef __AVX512F__
  if constexpr (std::is_same_v<V, Floats>)  // one instruction, which GCC makes two
    return reinterpret_cast<V>(_mm512_max_ps(reinterpret_cast<__m512>(bound), reinterpret_cast<__m512>(x)));
#endif
  return x < bound ? bound : x;
}
template <typename V>
inline V AtMost(V x, V bound) {
#ifdef __AVX512F__
  if constexpr (std::is_same_v<V, Floats>)
    return reinterpret_cast<V>(_mm512_min_ps(reinterpret_cast<__m512>(bound), reinterpret_cast<__m512>(x)));
#endif
  return x > bound ? bound : x;
}

// What is rounded to bfloat16 may be coarse.
template <bool kCoarse = false, typename V>
inline V Activate(Act act, V x) {
  const V zero = {}, six = V{} + 6.0f;
  switch (act) {
    case Act::kNone:
      return x;
    case Act::kRelu:
      return AtLeast(x, zero);
    case Act::kRelu6:
      return AtMost(AtLeast(x, zero), six);
    case Act::kSilu:
      return x * (kCoarse ? CoarseSigmoid(x) : Sigmoid(x));
    case Act::kSigmoid:
      return kCoarse ? CoarseSigmoid(x) : Sigmoid(x);
    case Act::kHardSwish:
    case Act::kHardSigmoid: {
      const V gate = AtMost(AtLeast(x + 3.0f, zero), six) * (1.0f / 6.0f);
      return act == Act::kHardSwish ? x * gate : gate;
    }
  }
  return x;
}

// Calls `function` with the activation as a constant.
template <typename F>
__attribute__((always_inline)) inline void WithAct(Act act, const F& function) {
  switch (act) {
    case Act::kNone: return function(std::integral_constant<Act, Act::kNone>{});
    case Act::kRelu: return function(std::integral_constant<Act, Act::kRelu>{});
    case Act::kRelu6: return function(std::integral_constant<Act, Act::kRelu6>{});
    case Act::kSilu: return function(std::integral_constant<Act, Act::kSilu>{});
    case Act::kHardSwish: return function(std::integral_constant<Act, Act::kHardSwish>{});
    case Act::kSigmoid: return function(std::integral_constant<Act, Act::kSigmoid>{});
    case Act::kHardSigmoid: return function(std::integral_constant<Act, Act::kHardSigmoid>{});
  }
}

// The derivative of `Activate`.
template <typename V>
inline V Slope(Act act, V x) {
  const V zero = {}, one = V{} + 1.0f;
  switch (act) {
    case Act::kNone:
      return one;
    case Act::kRelu:
      return x > zero ? one : zero;
    case Act::kRelu6:
      return x > zero ? (x < 6.0f ? one : zero) : zero;
    case Act::kSilu: {
      const V gate = Sigmoid(x);
      return gate * (1.0f + x * (1.0f - gate));
    }
    case Act::kSigmoid: {
      const V gate = Sigmoid(x);
      return gate * (1.0f - gate);
    }
    case Act::kHardSwish:
      return x > -3.0f ? (x < 3.0f ? (2.0f * x + 3.0f) * (1.0f / 6.0f) : one) : zero;
    case Act::kHardSigmoid:
      return x > -3.0f ? (x < 3.0f ? one * (1.0f / 6.0f) : zero) : zero;
  }
  return one;
}

}  // namespace jeffnet

#endif  // JEFFNET_COMMON_H_
