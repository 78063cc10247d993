// Limits of this machine: bytes per second of a read/write mix, multiply-adds per second.
// Loaded by roof.py; a measuring program, never shipped.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif
typedef float Vec __attribute__((vector_size(kVecBytes)));
// Sums in flight: more than latency times units, and with two factors no more than registers.
constexpr int kChains = kVecBytes == 64 ? 16 : 12;
constexpr int64_t kBlock = 1024 / kVecBytes;  // vectors taken from one place before the next

std::atomic<float> sink;

inline void store(Vec* to, Vec value, bool non_temporal) {
#if defined(__AVX512F__)
  if (non_temporal) return _mm512_stream_ps(reinterpret_cast<float*>(to), (__m512)value);
#elif defined(__AVX2__)
  if (non_temporal) return _mm256_stream_ps(reinterpret_cast<float*>(to), (__m256)value);
#elif defined(__x86_64__)
  if (non_temporal) return _mm_stream_ps(reinterpret_cast<float*>(to), (__m128)value);
#endif
  *to = value;
}

class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  void wait() {
    const int generation = generation_.load();
    if (arrived_.fetch_add(1) + 1 == count_) {
      arrived_.store(0);
      generation_.fetch_add(1);
      return;
    }
    for (int spins = 0; generation_.load() == generation; ++spins) {
      if (spins > 1000) std::this_thread::yield();
    }
  }

 private:
  const int count_;
  std::atomic<int> arrived_{0};
  std::atomic<int> generation_{0};
};

// One pass over `places` runs of `length` vectors, a block from each in turn: hardware prefetchers
// follow each run by itself, and several runs can be faster than one.
template <int R, int W, bool NT>
void sweep(const Vec* const* in, Vec* const* out, int64_t length, int places) {
  Vec sums[kBlock] = {};
  for (int64_t block = 0; block + kBlock <= length; block += kBlock) {
    for (int place = 0; place < places; ++place) {
      const int64_t at = place * length + block;
#pragma GCC unroll 16
      for (int64_t v = 0; v < kBlock; ++v) {
        Vec value = in[0][at + v];
        for (int r = 1; r < R; ++r) value += in[r][at + v];
        if constexpr (W == 0) {
          sums[v] += value;
        } else {
          for (int w = 0; w < W; ++w) store(out[w] + at + v, value, NT);
        }
      }
    }
  }
  if constexpr (W == 0) {
    Vec total = sums[0];
    for (int64_t v = 1; v < kBlock; ++v) total += sums[v];
    sink.store(total[0], std::memory_order_relaxed);
  }
#if defined(__x86_64__)
  if (NT) _mm_sfence();
#endif
}

using Sweep = void (*)(const Vec* const*, Vec* const*, int64_t, int);

template <bool NT>
Sweep choose(int reads, int writes) {
  static constexpr Sweep table[4][3] = {{sweep<1, 0, NT>, sweep<1, 1, NT>, sweep<1, 2, NT>},
                                        {sweep<2, 0, NT>, sweep<2, 1, NT>, sweep<2, 2, NT>},
                                        {sweep<3, 0, NT>, sweep<3, 1, NT>, sweep<3, 2, NT>},
                                        {sweep<4, 0, NT>, sweep<4, 1, NT>, sweep<4, 2, NT>}};
  return table[reads - 1][writes];
}

// Runs work(thread) on every thread, `rounds` times, together; seconds[round] is the time from the
// first one's start to the last one's end, whichever thread the system held up.
template <typename Work>
void time_rounds(int threads, int rounds, double* seconds, const Work& work) {
  using Clock = std::chrono::steady_clock;
  struct alignas(64) Span {
    Clock::time_point start, stop;
  };
  std::vector<Span> spans(threads);
  Barrier barrier(threads);
  auto body = [&](int thread) {
    for (int round = -1; round < rounds; ++round) {
      barrier.wait();
      spans[thread].start = Clock::now();
      work(thread);
      spans[thread].stop = Clock::now();
      barrier.wait();
      if (thread != 0 || round < 0) continue;
      Span all = spans[0];
      for (const Span& span : spans) {
        all.start = std::min(all.start, span.start);
        all.stop = std::max(all.stop, span.stop);
      }
      seconds[round] = std::chrono::duration<double>(all.stop - all.start).count();
    }
  };
  std::vector<std::thread> pool;
  for (int thread = 1; thread < threads; ++thread) pool.emplace_back(body, thread);
  body(0);
  for (auto& worker : pool) worker.join();
}

}  // namespace

extern "C" {

// Sweeps `bytes` of each array `sweeps` times a round; every thread keeps to its own slice.
// Returns the bytes that one round moves.
int64_t roof_mix(void* const* read, int reads, void* const* written, int writes, int64_t bytes,
                 int places, int non_temporal, int threads, int64_t sweeps, int rounds,
                 double* seconds) {
  const int64_t unit = kBlock * places;
  const int64_t slice = bytes / kVecBytes / threads / unit * unit;
  const Sweep run = non_temporal ? choose<true>(reads, writes) : choose<false>(reads, writes);
  time_rounds(threads, rounds, seconds, [&](int thread) {
    const Vec* in[4];
    Vec* out[2];
    for (int r = 0; r < reads; ++r) in[r] = static_cast<const Vec*>(read[r]) + thread * slice;
    for (int w = 0; w < writes; ++w) out[w] = static_cast<Vec*>(written[w]) + thread * slice;
    for (int64_t i = 0; i < sweeps; ++i) {
      run(in, out, slice / places, places);
      asm volatile("" ::: "memory");
    }
  });
  return slice * kVecBytes * threads * (reads + writes) * sweeps;
}

// Float32 operations (a multiply-add is two) that one round does.
int64_t roof_fma(int threads, int64_t steps, int rounds, double* seconds) {
  time_rounds(threads, rounds, seconds, [&](int) {
    // Different starts: equal chains would be computed once.
    Vec chain[kChains];
    for (int c = 0; c < kChains; ++c) chain[c] = Vec{} + static_cast<float>(c);
    const Vec scale = Vec{} + 0.999f;
    const Vec shift = Vec{} + 1e-3f;
    for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 16
      for (int c = 0; c < kChains; ++c) chain[c] = chain[c] * scale + shift;
    }
    Vec total = chain[0];
    for (int c = 1; c < kChains; ++c) total += chain[c];
    sink.store(total[0], std::memory_order_relaxed);
  });
  return steps * kChains * (kVecBytes / 4) * 2 * threads;
}

// The same with bfloat16 products that are summed in float32, by the instruction that does two of
// them a lane; 0 where the machine has none.
int64_t roof_dot(int threads, int64_t steps, int rounds, double* seconds) {
#if defined(__AVX512BF16__)
  time_rounds(threads, rounds, seconds, [&](int) {
    __m512 chain[kChains];
    for (int c = 0; c < kChains; ++c) chain[c] = _mm512_set1_ps(static_cast<float>(c));
    // Pairs of 1 and of 2^-10.
    const __m512bh one = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    const __m512bh small = (__m512bh)_mm512_set1_epi32(0x3a803a80);
    for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 16
      for (int c = 0; c < kChains; ++c) chain[c] = _mm512_dpbf16_ps(chain[c], one, small);
    }
    __m512 total = chain[0];
    for (int c = 1; c < kChains; ++c) total = _mm512_add_ps(total, chain[c]);
    sink.store(_mm512_cvtss_f32(total), std::memory_order_relaxed);
  });
  return steps * kChains * 16 * 2 * 2 * threads;
#else
  (void)threads, (void)steps, (void)rounds, (void)seconds;
  return 0;
#endif
}

}  // extern "C"
