// Runs a kernel as plain C++: block after block, a fiber for each thread, in an order drawn from a seed.
//
// A fiber runs until it has to wait for others, at a barrier or at a shuffle. Who goes on then is drawn: whole warps are
// left behind now and then, so that a missing barrier shows. All shared memory is dynamic; it holds NaN when a block
// starts and ends where the launch says, so AddressSanitizer sees what lies beyond. If nobody can go on, because some
// threads never reach a barrier, the launch fails. Approximate instructions are exact here; time and the order in which
// writes become visible mean nothing.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

struct dim3 {
  unsigned x, y, z;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulation::shared)

namespace emulation {

constexpr size_t STACK = 64 << 10;

struct Fiber {
  ucontext_t context;
  jmp_buf jump;
  dim3 thread;
  unsigned number;
  bool started = false, done = false;
  const unsigned* waits_for = nullptr;  // the generation of what it waits for, as long as it is `seen`
  unsigned seen = 0;
};

struct Barrier {
  unsigned arrived = 0, generation = 0, expected = 0;
};

inline std::vector<Fiber> fibers;
inline std::vector<Barrier> warps;
inline std::vector<uint64_t> exchanged;  // by shuffles, two places a thread, used in turn
inline Barrier block;
inline Fiber* self = nullptr;
inline ucontext_t scheduler_context;
inline jmp_buf scheduler_jump;
inline dim3 block_index, block_size, grid_size;
inline char* shared = nullptr;
inline void (*body)(void**) = nullptr;
inline void** arguments = nullptr;

// swapcontext asks the kernel twice for the signal mask, the jumps do not; AddressSanitizer only understands the first.
#if defined(__SANITIZE_ADDRESS__)
inline void pause() { swapcontext(&self->context, &scheduler_context); }
inline void resume() { swapcontext(&scheduler_context, &self->context); }
#else
inline void pause() {
  if (!_setjmp(self->jump)) _longjmp(scheduler_jump, 1);
}
inline void resume() {
  if (_setjmp(scheduler_jump)) return;
  if (self->started) _longjmp(self->jump, 1);
  self->started = true;
  setcontext(&self->context);
}
#endif

inline void open(Barrier& barrier) {
  barrier.arrived = 0;
  ++barrier.generation;
}

inline void wait(Barrier& barrier) {
  if (++barrier.arrived == barrier.expected) return open(barrier);
  self->waits_for = &barrier.generation;
  self->seen = barrier.generation;
  pause();
}

inline void leave(Barrier& barrier) {
  if (--barrier.expected && barrier.arrived == barrier.expected) open(barrier);
}

inline void run_fiber() {
  body(arguments);
  self->done = true;
  leave(block);
  leave(warps[self->number / 32]);
  pause();
}

template <class T>
T shuffle(T value, unsigned lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Barrier& warp = warps[self->number / 32];
  const unsigned turn = warp.generation & 1, source = self->number / 32 * 32 + lane % 32;
  std::memcpy(&exchanged[2 * self->number + turn], &value, sizeof(T));
  wait(warp);
  std::memcpy(&value, &exchanged[2 * source + turn], sizeof(T));
  return value;
}

struct Random {
  uint64_t state;
  unsigned below(unsigned n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % n;
  }
};

// Run one block to its end; return whether it came there.
inline bool run_block(Random& random, std::vector<unsigned>& order) {
  for (size_t done = 0; done < fibers.size();) {
    const unsigned left_behind = random.below(warps.size() + 1);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
    bool moved = false;
    for (int second = 0; second < 2 && !moved; ++second)  // the warp left behind goes on when nobody else can
      for (unsigned number : order) {
        self = &fibers[number];
        if (self->done || (self->waits_for && *self->waits_for == self->seen)) continue;
        if (!second && number / 32 == left_behind) continue;
        self->waits_for = nullptr;
        resume();
        moved = true;
        done += self->done;
      }
    if (!moved) return false;
  }
  return true;
}

inline void prepare(unsigned threads, char* stacks) {
  fibers.assign(threads, Fiber());
  warps.assign((threads + 31) / 32, Barrier());
  exchanged.assign(64 * warps.size(), 0);
  block = Barrier{0, 0, threads};
  for (unsigned k = 0; k < threads; ++k) {
    Fiber& fiber = fibers[k];
    fiber.number = k;
    fiber.thread = {k % block_size.x, k / block_size.x % block_size.y, k / block_size.x / block_size.y};
    ++warps[k / 32].expected;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks + k * STACK;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
}

inline int run(void (*kernel)(void**), dim3 grid, dim3 size, size_t shared_bytes, void** called_with, unsigned seed) {
  body = kernel;
  arguments = called_with;
  grid_size = grid;
  block_size = size;
  const unsigned threads = size.x * size.y * size.z, blocks = grid.x * grid.y * grid.z;
  Random random{seed};
  std::unique_ptr<char[]> stacks(new char[threads * STACK]);
  std::vector<unsigned> order(threads), places(blocks);
  for (unsigned k = 0; k < threads; ++k) order[k] = k;
  for (unsigned k = 0; k < blocks; ++k) places[k] = k;
  for (unsigned i = blocks; i > 1; --i) std::swap(places[i - 1], places[random.below(i)]);
  for (unsigned place : places) {
    block_index = {place % grid.x, place / grid.x % grid.y, place / grid.x / grid.y};
    std::unique_ptr<char[]> memory(new char[shared_bytes]);
    shared = memory.get();
    std::memset(shared, 0xFF, shared_bytes);
    prepare(threads, stacks.get());
    if (!run_block(random, order)) return 1;
  }
  return 0;
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** a, std::index_sequence<I...>) {
  kernel(*reinterpret_cast<A*>(a[I])...);
}
template <class... A>
void call(void (*kernel)(A...), void** a) {
  call(kernel, a, std::index_sequence_for<A...>{});
}

}  // namespace emulation

#define EMULATE(kernel)                                                                                           \
  extern "C" int emulated_##kernel(const unsigned* grid, const unsigned* block, size_t shared_bytes, void** a,    \
                                   unsigned seed) {                                                               \
    return emulation::run([](void** p) { emulation::call(kernel, p); }, dim3{grid[0], grid[1], grid[2]},          \
                          dim3{block[0], block[1], block[2]}, shared_bytes, a, seed);                             \
  }

#define threadIdx (emulation::self->thread)
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)
using std::max;
using std::min;
inline void __syncthreads() { emulation::wait(emulation::block); }
template <class T>
T __shfl_sync(unsigned, T value, unsigned lane) {
  return emulation::shuffle(value, lane);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, unsigned mask) {
  return emulation::shuffle(value, (emulation::self->number % 32) ^ mask);
}
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T atomicAdd(T* p, T value) {
  const T before = *p;
  *p += value;
  return before;
}
inline void __syncwarp() { emulation::wait(emulation::warps[emulation::self->number / 32]); }
inline void __threadfence() {}  // one thread runs at a time
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T atomicCAS(T* p, T expected, T value) {
  const T before = *p;
  if (before == expected) *p = value;
  return before;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}
inline float __fdividef(float x, float y) { return x / y; }

// Floats of 16 bits, to the nearest and to the even one of two.
inline float float_of_half(unsigned short bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float size = exponent ? std::ldexp(1024.f + fraction, exponent - 25) : std::ldexp((float)fraction, -24);
  if (exponent == 31) size = fraction ? NAN : INFINITY;
  return bits >> 15 ? -size : size;
}
inline unsigned short half_of_float(float x) {
  const unsigned short sign = std::signbit(x) << 15;
  if (x != x) return 0x7FFF;
  if (x == 0.f) return sign;
  if (std::fabs(x) >= 65520.f) return sign | 0x7C00;
  int exponent;
  std::frexp(x, &exponent);
  exponent = max(exponent, -13);  // below, numbers are as far apart as there
  return sign + (exponent + 13) * 1024 + (int)std::nearbyint(std::ldexp(std::fabs(x), 11 - exponent));
}
inline float float_of_bfloat16(unsigned short bits) {
  const uint32_t word = (uint32_t)bits << 16;
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}
inline unsigned short bfloat16_of_float(float x) {
  if (x != x) return 0x7FFF;
  uint32_t word;
  std::memcpy(&word, &x, sizeof x);
  return (word + 0x7FFF + (word >> 16 & 1)) >> 16;
}
