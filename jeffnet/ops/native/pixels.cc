// Resizes 8-bit pictures to the very bytes that Pillow's `Image.resize` gives, and only the part that is wanted; and changes
// colours to those that its `ImageEnhance` gives.
//
// Pillow multiplies pixels by weights of 22 binary places, adds them in 32 bits, and rounds to 8 bits after each of its
// two passes. Sums here are the same, modulo 2^32 too, in whatever order. A weight is split into 15 low bits and the rest,
// so that AVX2 multiplies and adds pairs of 16-bit numbers. Fused operations would round otherwise than those of
// Pillow: see build.py.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace jeffnet {
namespace {

constexpr int kBits = 32 - 8 - 2;  // binary places of a weight
constexpr int64_t kGroup = 4;      // taps that are multiplied together

// Within them no position overflows.
constexpr int64_t kMostSide = 1 << 24;          // pixels: Pillow's boxes hold whole numbers up to here
constexpr int64_t kMostStride = int64_t{1} << 32;
constexpr int64_t kMostScratch = 1 << 28;       // bytes, of weights and of the picture between the passes
constexpr double kMostWeight = 1 << 6;          // Pillow's are between -1 and 2

enum Status { kDone = 0, kRefused = 1, kOutOfMemory = 2 };
enum Flips { kLeftRight = 1, kTopBottom = 2 };

// ----------------------------------------------------------------------------------------------------------- weights

double Sinc(double x) {
  if (x == 0.0) return 1.0;
  x *= M_PI;
  return std::sin(x) / x;
}

struct Box {
  static constexpr double kSupport = 0.5;
  static double At(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }
};

struct Bilinear {
  static constexpr double kSupport = 1.0;
  static double At(double x) {
    x = std::fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
  }
};

struct Hamming {
  static constexpr double kSupport = 1.0;
  static double At(double x) {
    x = std::fabs(x);
    if (x == 0.0) return 1.0;
    if (x >= 1.0) return 0.0;
    x *= M_PI;
    return std::sin(x) / x * (0.54f + 0.46f * std::cos(x));
  }
};

struct Bicubic {
  static constexpr double kSupport = 2.0;
  static double At(double x) {
    x = std::fabs(x);
    const double inner = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1;
    const double outer = (((x - 5) * x + 8) * x - 4) * -0.5;
    return x < 1.0 ? inner : x < 2.0 ? outer : 0.0;
  }
};

struct Lanczos {
  static constexpr double kSupport = 3.0;
  static double At(double x) { return -3.0 <= x && x < 3.0 ? Sinc(x) * Sinc(x / 3) : 0.0; }
};

// Weights of `kGroup` neighbours: whole = high * 2^15 + low.
struct Weights {
#ifdef __AVX2__
  int16_t low[kGroup], high[kGroup];
  void Set(int64_t tap, int32_t whole) {
    low[tap] = static_cast<int16_t>(whole & 0x7fff);
    high[tap] = static_cast<int16_t>(whole >> 15);
  }
#else
  int32_t whole[kGroup];
  void Set(int64_t tap, int32_t value) { whole[tap] = value; }
#endif
};

// How one side is resized: for each output, in their order, where its inputs begin, how many there are and their weights.
struct Axis {
  int64_t size;    // of the input
  int64_t groups;  // of weights, for each output; those past the taps are 0
  std::vector<int64_t> starts, taps;
  std::vector<Weights> weights;
  int64_t first, last;  // the inputs that matter: `last` is the one after them

  int64_t outputs() const { return static_cast<int64_t>(starts.size()); }
};

// What one side of a resize is, in pixels: the side is resized from [from, to) to `out` pixels, of which [begin, end)
// are wanted.
struct Side {
  int64_t in;
  float from, to;
  int64_t out, begin, end;
  bool flipped;

  bool IsPossible() const {
    return 1 <= in && in <= kMostSide && 1 <= out && out <= kMostSide && 0 <= begin && begin < end && end <= out &&
           0.0f <= from && from <= to && to <= static_cast<float>(in);
  }
  // Whether Pillow leaves out the pass.
  bool IsUnchanged() const { return out == in && from == 0.0f && to == static_cast<float>(out); }
};

// False if there would be too many weights, or some beyond their range.
template <typename Filter>
bool Fill(const Side& side, Axis& axis) {
  const double scale = static_cast<double>(side.to - side.from) / static_cast<double>(side.out);
  const double filter_scale = std::max(scale, 1.0), inverse = 1.0 / filter_scale, support = Filter::kSupport * filter_scale;
  const int64_t most_taps = std::min(static_cast<int64_t>(std::ceil(support)) * 2 + 1, side.in), outputs = side.end - side.begin;
  axis.size = side.in;
  axis.groups = (most_taps + kGroup - 1) / kGroup;
  if (outputs * axis.groups > kMostScratch / static_cast<int64_t>(sizeof(Weights))) return false;
  const int64_t padded = axis.groups * kGroup;
  axis.starts.resize(outputs);
  axis.taps.resize(outputs);
  axis.weights.assign(outputs * axis.groups, Weights{});
  axis.first = side.in;
  axis.last = 0;
  std::vector<double> values(most_taps);
  for (int64_t place = 0; place < outputs; ++place) {
    const int64_t output = side.flipped ? side.end - 1 - place : side.begin + place;
    const double center = side.from + (static_cast<double>(output) + 0.5) * scale;
    const int64_t start = std::max<int64_t>(static_cast<int>(center - support + 0.5), 0);
    const int64_t taps = std::min<int64_t>(static_cast<int>(center + support + 0.5), side.in) - start;
    double sum = 0.0;
    for (int64_t tap = 0; tap < taps; ++tap) {
      values[tap] = Filter::At((static_cast<double>(tap + start) - center + 0.5) * inverse);
      sum += values[tap];
    }
    // Groups end with the side, so that nothing past it is read: the first weights are 0 instead of the last.
    const int64_t shift = std::clamp<int64_t>(start + padded - side.in, 0, start);
    Weights* weights = &axis.weights[place * axis.groups];
    for (int64_t tap = 0; tap < taps; ++tap) {
      const double value = sum != 0.0 ? values[tap] / sum : values[tap];
      if (!(std::fabs(value) < kMostWeight)) return false;
      const int32_t whole = static_cast<int32_t>((value < 0 ? -0.5 : 0.5) + value * (1 << kBits));
      weights[(tap + shift) / kGroup].Set((tap + shift) % kGroup, whole);
    }
    axis.starts[place] = start - shift;
    axis.taps[place] = taps + shift;
    axis.first = std::min(axis.first, start - shift);
    axis.last = std::max(axis.last, std::min(start - shift + padded, side.in));
  }
  return true;
}

// By the numbers that Pillow gives its filters.
bool Fill(int64_t filter, const Side& side, Axis& axis) {
  if (side.IsUnchanged()) return Fill<Box>(side, axis);  // weights of 1
  switch (filter) {
    case 1: return Fill<Lanczos>(side, axis);
    case 2: return Fill<Bilinear>(side, axis);
    case 3: return Fill<Bicubic>(side, axis);
    case 4: return Fill<Box>(side, axis);
    case 5: return Fill<Hamming>(side, axis);
  }
  return false;
}

// ------------------------------------------------------------------------------------------------------------ passes

// Pixels in memory: rows of `pixel` bytes each, of which the last is unused if there are 4.
struct Picture {
  const uint8_t* data;
  int64_t stride, width, height, pixel;

  const uint8_t* row(int64_t y) const { return data + y * stride; }
};

using Bytes = std::unique_ptr<uint8_t[]>;
using Rows = std::array<const uint8_t*, 4>;
using Quads = std::array<std::array<uint8_t, 16>, 4>;

// The order of the 16 bytes of four pixels.
struct alignas(16) Order : std::array<uint8_t, 16> {};
constexpr Order kWithoutFourth = {{0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15}};
constexpr Order kByChannel = {{0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15}};

#ifdef __AVX2__

__m256i Load(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
template <typename T>
T Copied(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}
__m256i Rounded(__m256i sums) { return _mm256_srai_epi32(_mm256_add_epi32(sums, _mm256_set1_epi32(1 << (kBits - 1))), kBits); }
__m256i Whole(__m256i low, __m256i high) { return _mm256_add_epi32(low, _mm256_slli_epi32(high, 15)); }

// Output pixels of four rows of 4 bytes a pixel: for each row one.
__m128i Pixels(const Rows& rows, int64_t start, const Weights* weights, int64_t groups) {
  // A vector has 4 pixels of each of two rows. As 16-bit numbers: channel by channel the first two, and the last two.
  const __m256i front = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1));
  const __m256i back = _mm256_add_epi8(front, _mm256_set1_epi16(8));
  __m256i low[2], high[2];
  for (int pair = 0; pair < 2; ++pair) low[pair] = high[pair] = _mm256_setzero_si256();
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t place = 4 * (start + kGroup * group);
    const auto weight = [&](const int16_t* two) { return _mm256_set1_epi32(Copied<int32_t>(two)); };
    const Weights& by = weights[group];
    for (int pair = 0; pair < 2; ++pair) {
      const auto* upper = reinterpret_cast<const __m128i*>(rows[pair] + place);
      const auto* lower = reinterpret_cast<const __m128i*>(rows[pair + 2] + place);
      const __m256i pixels = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(upper)), _mm_loadu_si128(lower), 1);
      const __m256i first = _mm256_shuffle_epi8(pixels, front), last = _mm256_shuffle_epi8(pixels, back);
      low[pair] = _mm256_add_epi32(low[pair], _mm256_madd_epi16(first, weight(by.low)));
      high[pair] = _mm256_add_epi32(high[pair], _mm256_madd_epi16(first, weight(by.high)));
      low[pair] = _mm256_add_epi32(low[pair], _mm256_madd_epi16(last, weight(by.low + 2)));
      high[pair] = _mm256_add_epi32(high[pair], _mm256_madd_epi16(last, weight(by.high + 2)));
    }
  }
  const __m256i words = _mm256_packs_epi32(Rounded(Whole(low[0], high[0])), Rounded(Whole(low[1], high[1])));
  return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

// Four output pixels of each of four rows, the bytes of each row in the given order.
void Square(const Rows& rows, const int64_t* starts, const Weights* const* weights, int64_t groups, const Order& order, Quads& quads) {
  __m128i columns[4];
  for (int x = 0; x < 4; ++x) columns[x] = Pixels(rows, starts[x], weights[x], groups);
  const __m128i pairs[4] = {_mm_unpacklo_epi32(columns[0], columns[1]), _mm_unpacklo_epi32(columns[2], columns[3]),
                            _mm_unpackhi_epi32(columns[0], columns[1]), _mm_unpackhi_epi32(columns[2], columns[3])};
  const __m128i by = _mm_load_si128(reinterpret_cast<const __m128i*>(order.data()));
  for (int row = 0; row < 4; ++row) {
    const __m128i upper = pairs[row / 2 * 2], lower = pairs[row / 2 * 2 + 1];
    const __m128i four = row % 2 ? _mm_unpackhi_epi64(upper, lower) : _mm_unpacklo_epi64(upper, lower);
    _mm_store_si128(reinterpret_cast<__m128i*>(quads[row].data()), _mm_shuffle_epi8(four, by));
  }
}

constexpr int64_t kBlock = 32;

// `kBlock` bytes of an output row: the sum of `taps` rows, which are even in number.
void Block(const uint8_t* const* rows, int64_t x, const Weights* weights, int64_t taps, uint8_t* result) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i low[4] = {zero, zero, zero, zero}, high[4] = {zero, zero, zero, zero};
  for (int64_t tap = 0; tap < taps; tap += 2) {
    const Weights& group = weights[tap / kGroup];
    const __m256i by_low = _mm256_set1_epi32(Copied<int32_t>(group.low + tap % kGroup));
    const __m256i by_high = _mm256_set1_epi32(Copied<int32_t>(group.high + tap % kGroup));
    const __m256i one = Load(rows[tap] + x), next = Load(rows[tap + 1] + x);
    const __m256i pairs[2] = {_mm256_unpacklo_epi8(one, next), _mm256_unpackhi_epi8(one, next)};
    for (int part = 0; part < 4; ++part) {
      const __m256i words = part % 2 ? _mm256_unpackhi_epi8(pairs[part / 2], zero) : _mm256_unpacklo_epi8(pairs[part / 2], zero);
      low[part] = _mm256_add_epi32(low[part], _mm256_madd_epi16(words, by_low));
      high[part] = _mm256_add_epi32(high[part], _mm256_madd_epi16(words, by_high));
    }
  }
  __m256i sums[4];
  for (int part = 0; part < 4; ++part) sums[part] = Rounded(Whole(low[part], high[part]));
  const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(result), bytes);
}

#else

uint8_t Clipped(uint32_t sum) {
  return static_cast<uint8_t>(std::clamp(static_cast<int32_t>(sum + (1u << (kBits - 1))) >> kBits, 0, 255));
}

void Square(const Rows& rows, const int64_t* starts, const Weights* const* weights, int64_t groups, const Order& order, Quads& quads) {
  for (int row = 0; row < 4; ++row) {
    uint8_t bytes[16];
    for (int x = 0; x < 4; ++x) {
      uint32_t sums[4] = {};
      for (int64_t tap = 0; tap < groups * kGroup; ++tap) {
        const uint32_t weight = static_cast<uint32_t>(weights[x][tap / kGroup].whole[tap % kGroup]);
        for (int channel = 0; channel < 4; ++channel) sums[channel] += weight * rows[row][4 * (starts[x] + tap) + channel];
      }
      for (int channel = 0; channel < 4; ++channel) bytes[4 * x + channel] = Clipped(sums[channel]);
    }
    for (int place = 0; place < 16; ++place) quads[row][place] = bytes[order[place]];
  }
}

constexpr int64_t kBlock = 64;

void Block(const uint8_t* const* rows, int64_t x, const Weights* weights, int64_t taps, uint8_t* result) {
  uint32_t sums[kBlock] = {};
  for (int64_t tap = 0; tap < taps; ++tap) {
    const uint32_t weight = static_cast<uint32_t>(weights[tap / kGroup].whole[tap % kGroup]);
    for (int64_t place = 0; place < kBlock; ++place) sums[place] += weight * rows[tap][x + place];
  }
  for (int64_t place = 0; place < kBlock; ++place) result[place] = Clipped(sums[place]);
}

#endif

// Rows of a picture as `Square` reads them: of 4 bytes a pixel, and at least as long as the weights of an output. The four
// bytes are channels, or of grey pictures four rows.
class WideRows {
 public:
  WideRows(const Picture& picture, const Axis& axis) : picture_(picture), step_(picture.pixel == 1 ? 16 : 4) {
    const int64_t padded = axis.groups * kGroup;
    row_bytes_ = 4 * std::max(picture.width, padded);
    if (picture.pixel != 4 || picture.width < padded) copies_.assign(4 * row_bytes_, 0);
  }

  // How many rows of the picture the four have.
  int64_t step() const { return step_; }

  // The rows from `y` on; for rows that are not there the last one.
  Rows Read(int64_t y) {
    Rows rows;
    for (int64_t row = 0; row < 4; ++row) rows[row] = copies_.empty() ? picture_.row(Last(y + row)) : &copies_[row * row_bytes_];
    if (copies_.empty()) return rows;
    for (int64_t row = 0; row < step_; ++row) {
      const uint8_t* from = picture_.row(Last(y + row));
      uint8_t* to = &copies_[picture_.pixel == 1 ? row / 4 * row_bytes_ + row % 4 : row * row_bytes_];
      if (picture_.pixel == 1)
        for (int64_t x = 0; x < picture_.width; ++x) to[4 * x] = from[x];
      else
        for (int64_t x = 0; x < picture_.width; ++x) std::memcpy(to + 4 * x, from + picture_.pixel * x, 3);
    }
    return rows;
  }

 private:
  int64_t Last(int64_t y) const { return std::min(y, picture_.height - 1); }

  const Picture& picture_;
  int64_t step_, row_bytes_;
  std::vector<uint8_t> copies_;
};

// The rows [first, last) of a picture, at their new width, into rows of 1 or 3 bytes a pixel.
void Horizontally(const Picture& picture, int64_t first, int64_t last, const Axis& axis, uint8_t* out, int64_t out_stride) {
  WideRows wide(picture, axis);
  const int64_t outputs = axis.outputs(), groups = axis.groups;
  const bool is_grey = picture.pixel == 1;
  alignas(16) Quads quads;
  for (int64_t y = first; y < last; y += wide.step()) {
    const Rows rows = wide.Read(y);
    const int64_t count = std::min(wide.step(), last - y);
    uint8_t* to = out + (y - first) * out_stride;
    for (int64_t x = 0; x < outputs; x += 4) {
      // The last four overlap those before, or are fewer.
      const int64_t place = std::max<int64_t>(std::min(x, outputs - 4), 0), many = std::min<int64_t>(outputs, 4);
      int64_t starts[4];
      const Weights* weights[4];
      for (int64_t each = 0; each < 4; ++each) {
        const int64_t output = std::min(place + each, outputs - 1);
        starts[each] = axis.starts[output];
        weights[each] = &axis.weights[output * groups];
      }
      Square(rows, starts, weights, groups, is_grey ? kByChannel : kWithoutFourth, quads);
      if (is_grey) {
        for (int64_t row = 0; row < count; ++row) std::memcpy(to + row * out_stride + place, &quads[row / 4][row % 4 * 4], many);
      } else if (place + 6 <= outputs) {
        // Four bytes more than needed, quicker: the next pixels are written over them.
        for (int64_t row = 0; row < count; ++row) std::memcpy(to + row * out_stride + 3 * place, quads[row].data(), 16);
      } else {
        for (int64_t row = 0; row < count; ++row) std::memcpy(to + row * out_stride + 3 * place, quads[row].data(), 3 * many);
      }
    }
  }
}

// The first `bytes` bytes of all rows of a picture, at their new height.
void Vertically(const Picture& picture, int64_t bytes, const Axis& axis, uint8_t* out, int64_t out_stride) {
  std::vector<const uint8_t*> rows(axis.groups * kGroup);
  std::vector<uint8_t> narrow;  // rows that are shorter than a block
  if (bytes < kBlock) narrow.assign(kBlock * (axis.groups * kGroup + 1), 0);
  for (int64_t y = 0; y < axis.outputs(); ++y) {
    const int64_t taps = (axis.taps[y] + 1) / 2 * 2;
    for (int64_t tap = 0; tap < taps; ++tap) {
      rows[tap] = picture.row(std::min(axis.starts[y] + tap, picture.height - 1));
      if (!narrow.empty()) {
        std::memcpy(&narrow[kBlock * tap], rows[tap], bytes);
        rows[tap] = &narrow[kBlock * tap];
      }
    }
    const Weights* weights = &axis.weights[y * axis.groups];
    uint8_t* to = out + y * out_stride;
    // The last block overlaps the one before.
    for (int64_t x = 0; x < bytes && narrow.empty(); x += kBlock) {
      const int64_t place = std::min(x, bytes - kBlock);
      Block(rows.data(), place, weights, taps, to + place);
    }
    if (!narrow.empty()) {
      uint8_t* result = &narrow[kBlock * axis.groups * kGroup];
      Block(rows.data(), 0, weights, taps, result);
      std::memcpy(to, result, bytes);
    }
  }
}

Status Resize(const Picture& picture, int64_t filter, const Side& x_side, const Side& y_side, uint8_t* out, int64_t out_stride) {
  Axis x_axis, y_axis;
  if (!Fill(filter, x_side, x_axis) || !Fill(filter, y_side, y_axis)) return kRefused;
  const int64_t channels = picture.pixel == 1 ? 1 : 3, shrinks = y_side.in - y_side.out;
  // Pillow's order: it decides what is rounded in between.
  const bool vertical_first = shrinks > 0 && shrinks > 2 * (x_side.in - x_side.out);
  const Axis& second = vertical_first ? x_axis : y_axis;
  const int64_t kept = second.last - second.first;
  const int64_t height = vertical_first ? y_axis.outputs() : kept;
  const int64_t row = vertical_first ? picture.pixel * kept : channels * x_axis.outputs();
  if (row > kMostScratch / height) return kRefused;
  const Bytes between(new uint8_t[row * height]);
  if (vertical_first) {
    Picture columns = picture;
    columns.data += picture.pixel * x_axis.first;
    Vertically(columns, row, y_axis, between.get(), row);
    for (int64_t& start : x_axis.starts) start -= x_axis.first;
    Horizontally({between.get(), row, kept, height, picture.pixel}, 0, height, x_axis, out, out_stride);
  } else {
    Horizontally(picture, y_axis.first, y_axis.last, x_axis, between.get(), row);
    for (int64_t& start : y_axis.starts) start -= y_axis.first;
    Vertically({between.get(), row, x_axis.outputs(), height, channels}, row, y_axis, out, out_stride);
  }
  return kDone;
}

// Whether `height` rows of `row` bytes, `stride` apart, fit into `bytes`.
bool Fits(int64_t height, int64_t row, int64_t stride, int64_t bytes) {
  return row <= stride && stride <= kMostStride && (height - 1) * stride + row <= bytes;
}

// ------------------------------------------------------------------------------------------------------------ colours

enum Change { kBrightness = 0, kContrast = 1, kSaturation = 2 };

// Pillow's `Image.blend` of one value: from `other` at a factor of 0 over `value` at 1 on, in 32-bit floats.
uint8_t Blended(int other, int value, float factor) {
  const float blended = static_cast<float>(other) + factor * static_cast<float>(value - other);
  return static_cast<uint8_t>(blended <= 0.0f ? 0.0f : blended >= 255.0f ? 255.0f : blended);
}

// Pillow's mode 'L' of a pixel.
int Grey(const uint8_t* pixel) { return (pixel[0] * 19595 + pixel[1] * 38470 + pixel[2] * 7471 + 0x8000) >> 16; }

int MeanGrey(const uint8_t* pixels, int64_t count, int64_t channels) {
  int64_t sum = 0;
  for (int64_t at = 0; at < count; ++at) sum += channels == 3 ? Grey(pixels + 3 * at) : pixels[at];
  return static_cast<int>(static_cast<double>(sum) / static_cast<double>(count) + 0.5);
}

void ChangeColours(uint8_t* pixels, int64_t count, int64_t channels, int64_t change, float factor) {
  if (change == kSaturation) {
    for (uint8_t* pixel = pixels; channels == 3 && pixel < pixels + 3 * count; pixel += 3) {
      const int grey = Grey(pixel);
      for (int channel = 0; channel < 3; ++channel) pixel[channel] = Blended(grey, pixel[channel], factor);
    }
    return;
  }
  const int other = change == kBrightness ? 0 : MeanGrey(pixels, count, channels);
  uint8_t table[256];
  for (int value = 0; value < 256; ++value) table[value] = Blended(other, value, factor);
  for (int64_t at = 0; at < count * channels; ++at) pixels[at] = table[pixels[at]];
}

}  // namespace

// Changes brightness, contrast and saturation of `count` pixels of 1 or 3 bytes, in place: `many` changes one after the
// other, each with its factor. Returns a `Status`: what is refused has changed nothing.
extern "C" int jeffnet_change_colours(uint8_t* pixels, int64_t bytes, int64_t count, int64_t channels, int64_t many,
                                      const int64_t* changes, const float* factors) {
  if ((channels != 1 && channels != 3) || count < 1 || count > bytes / channels || many < 0) return kRefused;
  for (int64_t step = 0; step < many; ++step)
    if (changes[step] < kBrightness || changes[step] > kSaturation || !std::isfinite(factors[step])) return kRefused;
  for (int64_t step = 0; step < many; ++step) ChangeColours(pixels, count, channels, changes[step], factors[step]);
  return kDone;
}

// Resizes a picture as Pillow does, and writes a part of the result.
//
// `in` has `in_bytes` bytes: rows of `width` pixels, `in_stride` bytes apart, of 1 (grey), 3 (RGB) or 4 bytes (RGB and one
// that is ignored). The part `box` (left, top, right, bottom) becomes `new_width` x `new_height` pixels, of which those of
// the `window` (likewise) are written, mirrored as `flips` says, to rows in `out` of 1 or 3 bytes a pixel. `filter` is
// Pillow's number of it. Returns a `Status`: what is refused has written nothing.
extern "C" int jeffnet_resize(const uint8_t* in, int64_t in_bytes, int64_t in_stride, int64_t width, int64_t height,
                              int64_t pixel, int64_t filter, const float* box, int64_t new_width, int64_t new_height,
                              const int64_t* window, int64_t flips, uint8_t* out, int64_t out_bytes, int64_t out_stride) {
  const Side x{width, box[0], box[2], new_width, window[0], window[2], (flips & kLeftRight) != 0};
  const Side y{height, box[1], box[3], new_height, window[1], window[3], (flips & kTopBottom) != 0};
  if (!x.IsPossible() || !y.IsPossible() || (pixel != 1 && pixel != 3 && pixel != 4)) return kRefused;
  const int64_t out_row = (pixel == 1 ? 1 : 3) * (x.end - x.begin);
  if (!Fits(height, pixel * width, in_stride, in_bytes) || !Fits(y.end - y.begin, out_row, out_stride, out_bytes))
    return kRefused;
  try {
    return Resize({in, in_stride, width, height, pixel}, filter, x, y, out, out_stride);
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
}

}  // namespace jeffnet
