// The choice of the next token without a sort of the vocabulary.
//
// Top-k alone: the candidates come from `rank.h`, in one pass. Without top-k, the whole row is
// weighed in double precision, and only tokens above a bound that holds enough of the weight are
// sorted. Sums run in order of rank, as in the reference, so both draw the same token.

#include <algorithm>
#include <cmath>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <blip_fast/check.h>
#include <blip_fast/isa.h>
#include <blip_fast/rank.h>
#include <blip_fast/vec.h>

namespace blip_fast {
namespace {

// Scores that are worth a thread of their own, some 10 us.
constexpr int64_t kGrain = 1 << 16;

// Bounds on logits that are tried: this many, this far apart after division by the temperature.
constexpr int kBounds = 64;
constexpr double kBoundStep = 0.5;
// Room for the rounding of sums in different orders.
constexpr double kSlack = 1 + 1e-9;

struct Settings {
  double temperature;
  int64_t top_k;  // 0: all
  double top_p;
};

// What one thread needs for a row, kept from row to row.
struct Scratch {
  std::vector<float> maxima, bounds;
  std::vector<double> weights;  // [n], without top-k only
  std::vector<RankKey> keys;
};

template <int W>
struct WideLanes {
  typedef double f64 __attribute__((vector_size(W * 8)));
  typedef uint64_t u64 __attribute__((vector_size(W * 8)));
};
template <int W>
using f64 = typename WideLanes<W>::f64;
template <int W>
using u64 = typename WideLanes<W>::u64;

// W logits as doubles.
template <int W>
BLIP_FAST_INLINE f64<W> widen_logits(const float* from) {
  return __builtin_convertvector(load_vector<f32<W>>(from), f64<W>);
}

// exp(x) for x <= 0 to the last bit or two, 0 below -708: 2^n times a Taylor series around 0.
template <int W>
BLIP_FAST_INLINE f64<W> exp_of_negative(const f64<W>& x) {
  constexpr double kRound = 0x1.8p52;  // added, it leaves a rounded integer in the low bits
  constexpr double kFactorials[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800,
                                    1.0 / 3628800,    1.0 / 362880,    1.0 / 40320,
                                    1.0 / 5040,       1.0 / 720,       1.0 / 120,
                                    1.0 / 24,         1.0 / 6,         0.5,
                                    1.0,              1.0};
  const f64<W> shifted = x * 0x1.71547652b82fep0 + kRound;
  const f64<W> n = shifted - kRound;
  const f64<W> r = (x - n * 0x1.62e42fefa3800p-1) - n * 0x1.ef35793c76730p-45;
  f64<W> series{};
  for (const double factor : kFactorials) series = series * r + factor;
  const f64<W> power = (f64<W>)(((u64<W>)shifted << 52) + (uint64_t{1023} << 52));
  return x < -708.0 ? f64<W>{} : series * power;
}

template <int W>
BLIP_FAST_INLINE double reduce(const f64<W>& v) {
  double total = 0;
  for (int lane = 0; lane < W; ++lane) total += v[lane];
  return total;
}

// Weights exp((logit - most) / temperature) of a row; returns their sum. A NaN weighs nothing.
template <int W>
BLIP_FAST_INLINE double weigh(const float* row, int64_t n, double most, double temperature,
                              double* weights) {
  f64<W> total{};
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const f64<W> logit = widen_logits<W>(row + i);
    const f64<W> weight = exp_of_negative<W>((logit - most) / temperature);
    const f64<W> known = logit == logit ? weight : f64<W>{};
    std::memcpy(weights + i, &known, sizeof known);
    total += known;
  }
  double rest = 0;
  for (; i < n; ++i) {
    const double weight = std::exp((row[i] - most) / temperature);
    weights[i] = row[i] == row[i] ? weight : 0.0;
    rest += weights[i];
  }
  return reduce<W>(total) + rest;
}

// The weight of all logits that reach `bound`.
template <int W>
BLIP_FAST_INLINE double weight_above(const float* row, const double* weights, int64_t n,
                                     double bound) {
  f64<W> total{};
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const f64<W> weight = load_vector<f64<W>>(weights + i);
    total += widen_logits<W>(row + i) >= bound ? weight : f64<W>{};
  }
  double rest = 0;
  for (; i < n; ++i) rest += row[i] >= bound ? weights[i] : 0.0;
  return reduce<W>(total) + rest;
}

// A bound, not far below the highest that does, whose logits weigh at least `needed`.
template <int W>
BLIP_FAST_INLINE float bound_of_weight(const float* row, const double* weights, int64_t n,
                                       double most, double temperature, double needed) {
  const auto at = [&](int step) {
    return static_cast<float>(most - temperature * kBoundStep * step);
  };
  int enough = kBounds + 1;
  for (int low = 0, high = kBounds + 1; low + 1 < high;) {
    const int middle = (low + high) / 2;
    const bool heavy = weight_above<W>(row, weights, n, at(middle)) >= needed;
    (heavy ? high : low) = middle;
    enough = high;
  }
  return enough > kBounds ? kLowest : at(enough);
}

// Draws among ranked tokens. `weights` are of the keys in order, `total` of all tokens allowed,
// among them perhaps some that rank behind these keys; those are never reached.
int64_t draw(const std::vector<RankKey>& keys, const std::vector<double>& weights, double total,
             double top_p, double uniform) {
  size_t kept = 0;
  double reached = 0;
  while (kept < keys.size() && weights[kept] > 0 && (top_p >= 1 || reached < top_p * total)) {
    reached += weights[kept++];
  }
  const double target = uniform * (top_p >= 1 ? total : reached);
  size_t place = 0;
  reached = kept > 0 ? weights[0] : 0;
  while (place + 1 < kept && reached <= target) reached += weights[++place];
  return key_index(keys[place]);
}

template <int W>
BLIP_FAST_INLINE int64_t draw_row(const float* row, int64_t n, double uniform,
                                  const Settings& settings, Scratch& scratch) {
  auto& [maxima, bounds, weights, keys] = scratch;
  keys.clear();
  maxima.resize(rank_blocks(n));
  block_maxima<W>(row, n, 0.0f, maxima.data());
  const double most = *std::max_element(maxima.begin(), maxima.end());
  if (!std::isfinite(most)) {  // all forbidden, or one infinitely likely: the first such token
    collect(row, n, 0.0f, maxima.data(), static_cast<float>(most), 0, keys);
    return keys.empty() ? 0 : key_index(*std::max_element(keys.begin(), keys.end()));
  }
  const double temperature = settings.temperature;
  if (settings.top_k > 0 && settings.top_k < n) {
    const float bound = bound_of(maxima, settings.top_k, bounds);
    collect(row, n, 0.0f, maxima.data(), bound, 0, keys);
    keep_first(keys, settings.top_k);
    weights.resize(keys.size());
    double total = 0;
    for (size_t i = 0; i < keys.size(); ++i) {
      weights[i] = std::exp((key_value(keys[i]) - most) / temperature);
      total += weights[i];
    }
    return draw(keys, weights, total, settings.top_p, uniform);
  }
  weights.resize(n);
  const double total = weigh<W / 2>(row, n, most, temperature, weights.data());
  const double needed = total * kSlack * (settings.top_p < 1 ? settings.top_p : uniform);
  const float bound = bound_of_weight<W / 2>(row, weights.data(), n, most, temperature, needed);
  collect(row, n, 0.0f, maxima.data(), bound, 0, keys);
  std::sort(keys.begin(), keys.end(), std::greater<>());
  std::vector<double> ranked(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) ranked[i] = weights[key_index(keys[i])];
  return draw(keys, ranked, total, settings.top_p, uniform);
}

struct DrawJob {
  const float* logits;   // [rows, n]
  const float* uniform;  // [rows]
  int64_t* tokens;       // [rows]
  int64_t n;
  Settings settings;
};

template <int W>
BLIP_FAST_INLINE void draw_rows(const DrawJob& job, int64_t first, int64_t last) {
  Scratch scratch;
  for (int64_t r = first; r < last; ++r) {
    job.tokens[r] = draw_row<W>(job.logits + r * job.n, job.n, job.uniform[r], job.settings,
                                scratch);
  }
}

struct BeamJob {
  const float* log_probs;  // [images * beams, n]
  const float* scores;     // [images, beams]
  float* best;             // [images, keep], and so the two below
  int64_t* beam;
  int64_t* token;
  int64_t beams, n, keep;
};

template <int W>
BLIP_FAST_INLINE void step_images(const BeamJob& job, int64_t first, int64_t last) {
  const int64_t blocks = rank_blocks(job.n);
  std::vector<float> maxima(job.beams * blocks), bounds;
  std::vector<RankKey> keys;
  for (int64_t image = first; image < last; ++image) {
    const float* const scores = job.scores + image * job.beams;
    const float* const rows = job.log_probs + image * job.beams * job.n;
    for (int64_t b = 0; b < job.beams; ++b) {
      block_maxima<W>(rows + b * job.n, job.n, scores[b], maxima.data() + b * blocks);
    }
    const float bound = bound_of(maxima, job.keep, bounds);
    keys.clear();
    for (int64_t b = 0; b < job.beams; ++b) {
      collect(rows + b * job.n, job.n, scores[b], maxima.data() + b * blocks, bound,
              static_cast<uint32_t>(b * job.n), keys);
    }
    keep_first(keys, job.keep);
    for (int64_t i = 0; i < job.keep; ++i) {
      const bool found = i < static_cast<int64_t>(keys.size());  // not where scores are NaN
      const int64_t place = found ? key_index(keys[i]) : 0;
      job.best[image * job.keep + i] = found ? key_value(keys[i]) : __builtin_nanf("");
      job.beam[image * job.keep + i] = place / job.n;
      job.token[image * job.keep + i] = place % job.n;
    }
  }
}

// One copy of each loop for each instruction set.
void draw_portable(const DrawJob& job, int64_t first, int64_t last) {
  draw_rows<4>(job, first, last);
}

void step_portable(const BeamJob& job, int64_t first, int64_t last) {
  step_images<4>(job, first, last);
}

#if defined(__x86_64__)
BLIP_FAST_TARGET_AVX2 void draw_avx2(const DrawJob& job, int64_t first, int64_t last) {
  draw_rows<8>(job, first, last);
}

BLIP_FAST_TARGET_AVX512 void draw_avx512(const DrawJob& job, int64_t first, int64_t last) {
  draw_rows<16>(job, first, last);
}

BLIP_FAST_TARGET_AVX2 void step_avx2(const BeamJob& job, int64_t first, int64_t last) {
  step_images<8>(job, first, last);
}

BLIP_FAST_TARGET_AVX512 void step_avx512(const BeamJob& job, int64_t first, int64_t last) {
  step_images<16>(job, first, last);
}
#endif

template <class Function>
Function pick([[maybe_unused]] Function avx512, [[maybe_unused]] Function avx2,
              Function portable) {
  if (current_isa() >= Isa::avx512) return avx512;
  if (current_isa() == Isa::avx2) return avx2;
  return portable;
}

void check_scores(const Tensor& scores, const char* name) {
  check_contiguous(scores, name);
  check_dtype(scores, ScalarType::Float, name);
  STD_TORCH_CHECK(scores.dim() == 2, name, " has ", scores.dim(), " dimensions, expected two");
}

// One token a row, as `reference.sample` draws it. Rows without any probability give token 0.
Tensor sample(const Tensor& logits, const Tensor& uniform, double temperature, int64_t top_k,
              double top_p) {
  check_scores(logits, "logits");
  check_contiguous(uniform, "uniform");
  check_dtype(uniform, ScalarType::Float, "uniform");
  check_vector(uniform, logits.size(0), "uniform");
  const int64_t rows = logits.size(0), n = logits.size(1);
  STD_TORCH_CHECK(rows == 0 || (n > 0 && n < (int64_t{1} << 32)), "logits have ", n,
                  " tokens, expected 1 to 2^32 - 1");
  Tensor tokens = torch::stable::new_empty(logits, {rows}, ScalarType::Long);
  const DrawJob job{static_cast<const float*>(logits.const_data_ptr()),
                    static_cast<const float*>(uniform.const_data_ptr()),
                    static_cast<int64_t*>(tokens.mutable_data_ptr()),
                    n,
                    {temperature, top_k, top_p}};
#if defined(__x86_64__)
  const auto draw_some = pick(&draw_avx512, &draw_avx2, &draw_portable);
#else
  const auto draw_some = &draw_portable;
#endif
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, n));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t a, int64_t b) { draw_some(job, a, b); });
  return tokens;
}

// The best continuations of each image's beams; where scores are equal, the lower beam and token.
std::tuple<Tensor, Tensor, Tensor> beam_step(const Tensor& log_probs, const Tensor& scores,
                                             int64_t keep) {
  check_scores(log_probs, "log_probs");
  check_scores(scores, "scores");
  const int64_t images = scores.size(0), beams = scores.size(1), n = log_probs.size(1);
  STD_TORCH_CHECK(log_probs.size(0) == images * beams, "log_probs has ", log_probs.size(0),
                  " rows, expected one for each of ", images, " x ", beams, " beams");
  STD_TORCH_CHECK(keep >= 0 && keep <= beams * n && beams * n < (int64_t{1} << 32),
                  "cannot keep ", keep, " of ", beams, " x ", n, " continuations");
  Tensor best = torch::stable::new_empty(scores, {images, keep});
  Tensor beam = torch::stable::new_empty(scores, {images, keep}, ScalarType::Long);
  Tensor token = torch::stable::new_empty(scores, {images, keep}, ScalarType::Long);
  const BeamJob job{static_cast<const float*>(log_probs.const_data_ptr()),
                    static_cast<const float*>(scores.const_data_ptr()),
                    static_cast<float*>(best.mutable_data_ptr()),
                    static_cast<int64_t*>(beam.mutable_data_ptr()),
                    static_cast<int64_t*>(token.mutable_data_ptr()),
                    beams,
                    n,
                    keep};
#if defined(__x86_64__)
  const auto step_some = pick(&step_avx512, &step_avx2, &step_portable);
#else
  const auto step_some = &step_portable;
#endif
  if (keep > 0) {
    const int64_t grain = std::max<int64_t>(1, kGrain / (beams * n));
    torch::stable::parallel_for(0, images, grain,
                                [&](int64_t a, int64_t b) { step_some(job, a, b); });
  }
  return {best, beam, token};
}

}  // namespace
}  // namespace blip_fast

STABLE_TORCH_LIBRARY_IMPL(blip_fast, CPU, m) {
  m.impl("sample.native", TORCH_BOX(&blip_fast::sample));
  m.impl("beam_step.native", TORCH_BOX(&blip_fast::beam_step));
}
